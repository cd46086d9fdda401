"""Recorded runs of the JAX implementations on ten tensors of ranks 0 to 4, and the same runs by our rules."""

import json
from pathlib import Path

import numpy as np
import torch

from lightning_lopt import StepContext

# github.com/google/learned_optimization (32186aa4) and github.com/amoudgl/celo (66d97611), θ random and the same
# parameters, gradients and losses in all files. Further ones stay outside the repository.
HERE = Path(__file__).parent / "golden"
OUTSIDE = next(
    (path / "shared" / "golden" for path in Path(__file__).resolve().parents[3:5] if (path / "shared").exists()), HERE
)
NAMES = {
    "AdafacMLPLOpt": ["adafac_mlp_h4", "adafac_mlp_h32", "adafac_mlp_h4_extreme_decays"],
    "MLPLOpt": ["mlp_lopt"],
    "Celo": ["celo_random_mix4", "celo_pretrained"],
    "HyperV2": ["velo_small", "velo_small_classdefault_flags", "velo_small_bugged_lstm_state", "velo_release_size"],
    "RNNMLPLOpt": ["rnn_mlp"],
    "NNAdam": ["nn_adam"],
}
LEFT_OUT = "this recording is not in ../shared/golden"


def recording(name):
    """The path of a recorded run; it may not exist."""
    path = HERE / f"{name}.npz"
    return path if path.exists() else OUTSIDE / f"{name}.npz"


class Recording:
    """One file: how the reference was set up, its θ, and what went in and came out."""

    def __init__(self, path):
        self.data = dict(np.load(path))
        self.config = json.loads(str(self.data["config"]))
        self.steps = len(self.data["loss"])
        self.names = sorted(key.split("/")[1] for key in self.data if key.startswith("param0/"))

    def theta(self):
        """The reference's θ, each by the path of its module and its own name."""
        if "theta_recipe/names" in self.data:
            return self._recipe()
        return {key[len("theta/") :]: torch.tensor(x) for key, x in self.data.items() if key.startswith("theta/")}

    def _recipe(self):
        """θ too large to be stored: drawn again."""
        draws, theta = np.random.RandomState(22), {}
        names, shapes = self.data["theta_recipe/names"], self.data["theta_recipe/shapes"]
        for index, (name, shape) in enumerate(zip(map(str, names), shapes, strict=True)):
            value = (draws.random_sample(json.loads(str(shape))) - 0.5) * np.sqrt(12)
            value = value * self.data["theta_recipe/scale"][index]
            if name == "rnn_params/step_size/b":
                value = np.ones_like(value)
            if name in ("ff_mod_stack/mlp/w2", "ff_mod_stack/mlp/b2"):
                value[..., 0] *= 10
                value[..., 1] *= 60
            value = value.astype(np.float32)
            assert value.astype(np.float64).sum() == self.data["theta_recipe/sum"][index]
            theta[name] = torch.tensor(value)
        return theta

    def tensors(self, prefix, dtype=torch.float64):
        """What is stored under ``prefix``, by the rest of the key."""
        found = {key[len(prefix) :]: x for key, x in self.data.items() if key.startswith(prefix)}
        return {key: torch.tensor(x, dtype=dtype) for key, x in found.items()}

    def run(self, rule, dtype, *, turn=lambda x: x):
        """Parameters and state of our rule after each step: (step, params, state)."""
        params = {name: turn(x) for name, x in self.tensors("param0/", dtype).items()}
        with torch.no_grad():
            state = rule.init_state(params, {})
            for step in range(self.steps):
                loss = torch.tensor(self.data["loss"][step], dtype=dtype)
                if "is_valid" in self.data and self.data["is_valid"][step]:
                    state = rule.validated(state, loss, torch.tensor(step / 20.0, dtype=dtype))
                else:
                    grads = {name: turn(torch.tensor(self.data[f"grad/{name}"][step], dtype=dtype)) for name in params}
                    at = StepContext(torch.tensor(step, dtype=dtype), torch.tensor(20.0, dtype=dtype), loss)
                    updates, state = rule(params, grads, state, at)
                    params = {name: params[name] + updates[name] for name in params}
                yield step, params, state
