"""The method: fold models vote, the policy picks, the coreset grows stage by stage. Needs neither torch nor ray."""
