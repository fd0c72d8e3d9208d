"""AdamW, layers' rates, moving averages, mixed batches, timm's models: by their formulas, and over interruptions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

import unseen_ray as ur
from tests.training.fitting import TUNED, fetch, net, prepare, recipe, train
from unseen_ray.config.models import model_builder
from unseen_ray.config.named_recipes import RECIPES
from unseen_ray.config.recipe import Recipe
from unseen_ray.data.images.loading import load_pixel_store
from unseen_ray.data.sources.registry import open_source, source_ref
from unseen_ray.errors import ConfigError
from unseen_ray.training.hardware import numerics
from unseen_ray.training.initial_weights import start_from
from unseen_ray.training.loop.averages import average_of
from unseen_ray.training.loop.batches import BatchLoader, hold_pixels, measure
from unseen_ray.training.loop.epochs import EpochStats
from unseen_ray.training.loop.fit import FitPlan, fit
from unseen_ray.training.loop.mixing import mix_of
from unseen_ray.training.loop.optimizer import layers_of, make_optimizer, set_rate
from unseen_ray.training.loop.predict import predict
from unseen_ray.training.loop.trainer import Trainer

CPU = torch.device("cpu")


def names_of(model: nn.Module) -> list[list[str]]:
    names = {weight: name for name, weight in model.named_parameters()}
    return [[names[weight] for weight in layer] for layer in layers_of(model)]


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(3)
    return [(torch.randn(16, 3, 8, 8), torch.randint(10, (16,))) for _ in range(count)]


def test_layers_go_from_the_input_to_the_head() -> None:
    assert names_of(net()) == [["0.weight", "0.bias"], ["1.weight", "1.bias"], ["6.weight", "6.bias"]]
    resnet = names_of(model_builder("resnet18_cifar")(num_classes=10))
    assert [layer[0].split(".")[0] for layer in resnet] == [
        "conv1",
        "bn1",
        *["layer1", "layer1"],
        *["layer2"] * 2,
        *["layer3"] * 2,
        *["layer4"] * 2,
        "fc",
    ]
    sizes = {"image_size": 8, "patch_size": 4, "num_layers": 3, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 16}
    encoder = names_of(torchvision.models.VisionTransformer(**sizes, num_classes=10))
    assert encoder[0] == ["class_token", "encoder.pos_embedding", "conv_proj.weight", "conv_proj.bias"]
    assert [layer[0] for layer in encoder[1:4]] == [f"encoder.layers.encoder_layer_{i}.ln_1.weight" for i in range(3)]
    assert [layer[0] for layer in encoder[4:]] == ["encoder.ln.weight", "heads.head.weight"]
    pytest.importorskip("timm")
    vit = names_of(model_builder({"use": "timm/test_vit", "img_size": 32, "patch_size": 4})(num_classes=10))
    assert vit[0] == ["cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"]
    assert [layer[0].rpartition(".norm1")[0] for layer in vit[1:7]] == [f"blocks.{number}" for number in range(6)]
    assert vit[-1] == ["head.weight", "head.bias"]


def test_all_trained_weights_are_in_one_layer_and_frozen_ones_in_none() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    model[1].weight = model[0].weight  # tied
    model[2].bias.requires_grad_(False)
    assert names_of(model) == [["0.weight", "0.bias"], ["1.bias"], ["2.weight"]]
    scaled = nn.Sequential(nn.Linear(4, 4))
    scaled.register_parameter("scale", nn.Parameter(torch.ones(1)))
    assert names_of(nn.Sequential(scaled, nn.Linear(4, 2)))[:2] == [["0.0.weight", "0.0.bias"], ["0.scale"]]


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_adamw_steps_as_torch_s_with_a_rate_for_each_layer(layer_decay: float) -> None:
    given = recipe(1, optimizer="adamw", lr=0.01, momentum=0.8, weight_decay=0.1, layer_decay=layer_decay)
    torch.manual_seed(0)
    model, plain = net().eval(), net().eval()
    plain.load_state_dict(model.state_dict())
    groups = []
    for number, depth in (("0", 2), ("1", 1), ("6", 0)):
        for kind in ("weight", "bias"):
            weight = plain.get_parameter(f"{number}.{kind}")
            decay = 0.1 if weight.ndim > 1 else 0.0
            groups.append({"params": [weight], "lr": 0.004 * layer_decay**depth, "weight_decay": decay})
    reference = torch.optim.AdamW(groups, betas=(0.8, 0.999))
    optimizer = make_optimizer(model, given)
    for inputs, labels in batches(3):
        set_rate(optimizer, 0.004)
        for each, its in ((model, optimizer), (plain, reference)):
            nn.functional.cross_entropy(each(inputs), labels).backward()
            its.step()
            its.zero_grad()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value)


def test_the_average_is_that_of_the_formula() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average, expected = average_of(model, Recipe(ema=0.5), 8), model.state_dict()["0.weight"].clone()
    assert average is not None
    for step in range(1, 9):
        with torch.no_grad():
            model[0].weight += 1.0
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model[0].weight.detach()
    last = model[0].weight.detach().clone()
    with average.in_place():
        torch.testing.assert_close(model[0].weight, expected, check_dtype=False, atol=1e-6, rtol=1e-6)
    assert torch.equal(model[0].weight, last)
    average.put_in_place()
    torch.testing.assert_close(model[0].weight.detach(), expected)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_a_mixed_image_is_of_two_and_its_target_says_how_much_of_each(kind: str) -> None:
    mix = mix_of(Recipe(**{kind: 1.0}), 10)
    assert mix is not None
    torch.manual_seed(0)
    labels = torch.arange(8)
    inputs = torch.zeros(8, 3, 16, 16) + labels[:, None, None, None]
    mixed, targets = mix(inputs.contiguous(memory_format=torch.channels_last), labels)
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(targets.sum(1), torch.ones(8))
    assert set((targets > 0).sum(1).tolist()) == {2}
    torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), targets @ torch.arange(10.0), atol=1e-4, rtol=0)
    assert len(mixed[3].unique()) == (1 if kind == "mixup" else 2)


def test_with_both_each_batch_is_mixed_by_one_of_them() -> None:
    mix = mix_of(Recipe(mixup=1.0, cutmix=1.0), 10)
    assert mix is not None and mix_of(Recipe(), 10) is None
    torch.manual_seed(0)
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 16, 16)
    kinds = [len(mix(images, torch.arange(4))[0][1].unique()) for _ in range(20)]
    assert 1 in kinds and 2 in kinds


def test_a_model_trained_by_all_of_it_learns_and_predicts_by_the_average(tmp_path: Path) -> None:
    model, stats = train(tmp_path, recipe(30, **TUNED))
    assert stats[-1].loss < stats[0].loss
    trained, _ = fetch(tmp_path, recipe(30, **TUNED))
    again, _ = train(tmp_path, recipe(30, **TUNED))  # from the checkpoint of the last epoch
    last, _ = train(None, recipe(30, **{**TUNED, "ema": 0.0}))
    for name, value in model.state_dict().items():
        assert torch.equal(value, trained.state_dict()[name]) and torch.equal(value, again.state_dict()[name]), name
    assert not torch.equal(model[6].weight, last[6].weight)


class Noting:
    """What a recorder of scores sees of the model, after each epoch."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.seen = model, []

    def record(self, epoch: int) -> None:
        self.seen.append(self.model[6].weight.detach().clone())


def test_scores_over_epochs_are_of_the_average_and_training_goes_on_from_the_last_step() -> None:
    averaged = recipe(4, ema=0.9)
    with numerics(1, False, CPU):
        model, loader, plan, _ = prepare(None, averaged, CPU)
        noting = Noting(model)
        after: list[Tensor] = []
        stats: list[EpochStats] = []
        for each in fit(model, loader, plan, None, noting):  # type: ignore[arg-type]
            stats.append(each)
            after.append(model[6].weight.detach().clone())
    plain, its = train(None, recipe(4))
    assert [each.loss for each in stats] == [each.loss for each in its]
    assert not any(torch.equal(seen, last) for seen, last in zip(noting.seen[:-1], after[:-1], strict=True))
    assert torch.equal(noting.seen[-1], after[-1])
    assert not torch.equal(after[-1], plain[6].weight)


def test_a_checkpoint_without_its_average_is_of_another_fit() -> None:
    torch.manual_seed(0)
    with_it, without = (
        Trainer(net(), recipe(1, **fields), steps=9, num_classes=10, device=CPU, replicas=1)
        for fields in ({"ema": 0.9}, {})
    )
    with pytest.raises(ValueError, match="of another model"):
        with_it.restore(without.tensors(), {})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"recipe": {"optimizer": "adamw"}}, r"recipe\.lr=0\.1 is a learning rate of SGD.*recipe finetune"),
        ({"recipe": {"optimizer": "lion"}}, r"recipe\.optimizer='lion'"),
        ({"recipe": {"layer_decay": 1.5}}, r"recipe\.layer_decay=1\.5"),
        ({"recipe": {"lookahead": 1}}, r"recipe\.lookahead=1"),
        ({"recipe": {"flip": "always"}}, r"recipe\.flip='always'"),
        ({"recipe": {"shift": 0.6}}, r"recipe\.shift=0\.6"),
        ({"recipe": {"bias_lr": 0}}, r"recipe\.bias_lr=0"),
        (
            {"recipe": {"use": "airbench-94", "ema": 0.99}},
            r"recipe\.ema=0\.99 and recipe\.lookahead=0\.95 both average the weights. Set one of them to 0",
        ),
        ({"recipe": {"ema": 1}}, r"recipe\.ema=1"),
        (
            {"model": {"use": "timm/test_vit", "pretrained": True}},
            r"model: pretrained=True would load pretrained weights",
        ),
        (
            {"model": {"use": "torchvision.models:resnet18", "weights": "DEFAULT"}},
            r"weights='DEFAULT' would load.*recipe\.init",
        ),
        ({"scoring": {"model": {"use": "timm/test_vit", "pretrained": True}}}, r"scoring\.model: pretrained=True"),
        ({"model": "timm/"}, r"model='timm/' is not a model"),
        ({"model": "tim/test_vit"}, r"model='tim/test_vit' is not a model\. Allowed: .*timm/NAME"),
    ],
)
def test_what_cannot_be_trained_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ur.PruneConfig(**{"source": "digits", "keep": 0.5, "out": "x", **fields})


def test_an_unknown_model_of_timm_is_named_before_anything_starts(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match=r"timm has no model 'test_vitt'.*Did you mean 'test_vit"):
        ur.prune(
            ur.PruneConfig(
                source="digits", keep=0.5, out=str(tmp_path / "run"), model="timm/test_vitt", executor="local"
            )
        )


def test_without_timm_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"model timm/test_vit needs timm.*pip install timm"):
        model_builder("timm/test_vit")


VIT: dict[str, Any] = {"use": "timm/test_vit", "img_size": 32, "patch_size": 8}


def trained_vit(path: Path, rows: slice, given: Recipe) -> tuple[nn.Module, float]:
    """A small ViT trained on rows of CIFAR-10, and its accuracy on the first 500."""
    source = open_source(source_ref({"use": "parquet", "path": str(path)}))
    pixel_store, _ = load_pixel_store(source, 32)
    ids = np.arange(rows.start, rows.stop)
    plan = FitPlan(ids_M=ids, labels_M=source.info.labels_N[ids], num_classes=10, recipe=given, seed=1)
    with numerics(1, False, CPU):
        torch.manual_seed(1)
        model = model_builder(VIT)(num_classes=10)
        start_from(model, given)
        loader = BatchLoader(hold_pixels(pixel_store, CPU), measure(pixel_store, ids))
        list(fit(model, loader, plan))
        found = [each.log_probs_BC.argmax(1) for each in predict(model, loader, np.arange(500), given)]
    return model, float((np.concatenate(found) == source.info.labels_N[:500]).mean())


@pytest.mark.slow
@pytest.mark.realdata
def test_a_small_vit_is_fine_tuned_on_500_images(tmp_path: Path, real_data: Path) -> None:
    pytest.importorskip("timm")
    images, weights = tmp_path / "images.parquet", tmp_path / "weights.safetensors"
    pq.write_table(pq.read_table(real_data / "cifar10-train.parquet").slice(0, 11_000), images)
    model, _ = trained_vit(images, slice(1_000, 11_000), recipe(8, optimizer="adamw", lr=0.002, augment="flip"))
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, weights)
    start = {"init": str(weights), "init_saw": "none"}
    finetune = RECIPES["finetune"][0].model_copy(update={"precision": "float32"})
    _, afresh = trained_vit(images, slice(500, 1_000), finetune)
    _, tuned = trained_vit(images, slice(500, 1_000), finetune.model_copy(update={**start, "ema": 0.98}))
    assert tuned > afresh + 0.05

    few = {"use": "parquet", "path": str(images), "limit": 500}
    fields = {"use": "finetune", "epochs": 3, "min_steps": 0, "ema": 0.9, **start}
    config = ur.PruneConfig(
        source=few,
        keep=0.6,
        folds=2,
        model=VIT,
        recipe=fields,
        policy="top",
        executor="local",
        out=str(tmp_path / "run"),
    )
    run = ur.prune(config)
    assert len(run.coreset) == 300
    assert run.manifest.stages[0].accuracy > 0.25  # of models that never saw the sample


def test_the_clock_of_the_first_training_counts_no_import() -> None:
    """Torch's optimizers import a compiler of some 2,000 modules when the first one is made."""
    code = """if True:
        import sys, torch
        from unseen_ray.config.recipe import Recipe
        from unseen_ray.training.loop.optimizer import make_optimizer
        before = len(sys.modules)
        make_optimizer(torch.nn.Linear(2, 2), Recipe())
        print(len(sys.modules) - before)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 10
