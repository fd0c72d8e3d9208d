"""What an installation brings has a licence of the list; `python -m tests.test_licences` prints all of them."""

from __future__ import annotations

import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import Requirement

ALLOWED = {
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "HPND", "ISC", "MIT", "MIT-CMU", "MPL-2.0", "PSF-2.0",
    "Python-2.0", "Unlicense", "Zlib",
}  # fmt: skip
NVIDIA = "LicenseRef-NVIDIA"
"""What torch's wheels for CUDA bring: NVIDIA's own terms, which allow use and the libraries' distribution with a program."""

EXTRAS = ("hf", "optuna", "timm")
# Distributions say it in words, if they say it at all; the order is that in which the words are looked for.
WORDS = {
    r"nvidia": NVIDIA,
    r"apache": "Apache-2.0",
    r"mozilla|mpl": "MPL-2.0",
    r"(2|two)-clause|simplified bsd": "BSD-2-Clause",
    r"bsd": "BSD-3-Clause",
    r"\bmit\b": "MIT",
    r"python software foundation|\bpsf": "PSF-2.0",
    r"\bisc\b": "ISC",
    r"unlicense": "Unlicense",
    r"zlib": "Zlib",
    r"hpnd|historical permission": "HPND",
}


def installed(name: str, extras: tuple[str, ...] = ()) -> dict[str, Distribution]:
    """A distribution and all that it requires here, by name; what is not installed is left out."""
    found: dict[str, Distribution] = {}
    asked = [(name, extras)]
    seen: set[tuple[str, tuple[str, ...]]] = set()
    while asked:
        name, extras = asked.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue
        for requirement in map(Requirement, found[name].requires or ()):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras or ("",)):
                asked.append((re.sub(r"[-_.]+", "-", requirement.name).lower(), tuple(sorted(requirement.extras))))
    return found


def licences_of(found: Distribution) -> set[str]:
    """The licences of a distribution as SPDX identifiers; words that are none of ours stay as they are."""
    if re.match("nvidia-|cuda-", found.metadata["Name"]):
        return {NVIDIA}
    said = found.metadata.get_all("License-Expression") or [
        text.rpartition(":: ")[2]
        for text in found.metadata.get_all("Classifier") or ()
        if text.startswith("License ::")
    ]
    said = [text for text in said if text != "OSI Approved"] or [
        (found.metadata["License"] or "unknown").strip().split("\n")[0]
    ]
    names = {
        name.strip() for text in said for name in re.split(r"\s+(?:AND|OR)\s+|\s+WITH \S+|[()]", text) if name.strip()
    }
    return {name if name in ALLOWED else identifier(name) for name in names}


def identifier(text: str) -> str:
    return next((name for words, name in WORDS.items() if re.search(words, text, re.IGNORECASE)), text)


def test_every_dependency_has_a_licence_of_the_list() -> None:
    found = installed("unseen-ray", EXTRAS)
    assert {"numpy", "torch", "ray", "pillow"} <= found.keys() and len(found) > 50
    strange = {name: sorted(licences_of(one) - ALLOWED - {NVIDIA}) for name, one in found.items()}
    assert {name: names for name, names in strange.items() if names} == {}


def test_a_licence_that_is_not_on_the_list_is_seen() -> None:
    assert identifier("GNU Affero General Public License v3") not in ALLOWED | {NVIDIA}
    assert identifier("BSD License") == "BSD-3-Clause" and identifier("unknown") not in ALLOWED


if __name__ == "__main__":
    for name, one in sorted(installed("unseen-ray", EXTRAS).items()):
        print(f"{name}\t{one.version}\t{', '.join(sorted(licences_of(one)))}")
