"""Loading weights where every entry must fit, and explaining what does not."""
from collections import defaultdict
from collections.abc import Iterable

from torch import Tensor, nn

from utils import UserError

STRIDE = 32  # pixels per token of the coarsest map


def load_strictly(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Copies `state` into `module`, or raises `UserError` without touching it.

    The error lists what is missing, unexpected or of another shape, grouped by module, and which flags
    would make a network that the weights fit. `source` names the weights in the error.
    """
    own = module.state_dict()
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    reshaped = [f"{name} is {tuple(state[name].shape)}, needed {tuple(own[name].shape)}"
                for name in own if name in state and state[name].shape != own[name].shape]
    if not (missing or unexpected or reshaped):
        module.load_state_dict(state)
        return
    found = [f"{len(names)} {what}: {by_module(names)}" for what, names in
             (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped)) if names]
    raise UserError(f"{source} does not fit this network; nothing was loaded. " + "; ".join(found)
                    + suggestion(state, own))


def by_module(names: Iterable[str], modules: int = 6, entries: int = 3) -> str:
    """'backbone.stages.0.fusion (key.weight, key.bias, … 12 in all), …': at most so many of each."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        parts = name.split(" ")[0].split(".")
        depth = 4 if parts[0] in ("backbone", "cross_scale") else 3 if parts[0] in ("decoder", "text_encoder") else 1
        depth = min(depth, len(parts) - 1)
        groups[".".join(parts[:depth])].append(".".join([*parts[depth:-1], name[len(".".join(parts[:-1])):].lstrip(".")]))
    shown = [f"{module} ({', '.join(rest[:entries])}{f', … {len(rest)} in all' if len(rest) > entries else ''})"
             for module, rest in list(groups.items())[:modules]]
    return ", ".join(shown) + (f", and in {len(groups) - modules} more modules" if len(groups) > modules else "")


def implied_flags(state: dict[str, Tensor]) -> dict[str, str]:
    """The flags that build a network for these weights, as far as they show."""
    flags = {"model": "--model rmsin" if any(name.startswith("cross_scale.") or ".router." in name for name in state)
             else "--model lavt"}
    for name, value in state.items():
        if name.endswith("patch_embed.proj.weight"):
            flags["width"] = {32: "--swin_type nano", 96: "--swin_type tiny or small", 128: "--swin_type base",
                              192: "--swin_type large"}.get(value.shape[0], f"a Swin of width {value.shape[0]}")
        elif name.endswith("relative_position_bias_table"):
            window = (round(value.shape[0] ** 0.5) + 1) // 2
            flags["window"] = {12: "--window12", 7: "no --window12 (and a Swin file without window12 in its name)"
                               }.get(window, f"a window of {window}")
        elif name.endswith("attention1.token_project.weight"):
            flags["size"] = f"--img_size {STRIDE * round(value.shape[0] ** 0.5)}"
    blocks = sum(".blocks." in name and name.endswith(".attn.qkv.weight") and "stages.2." in name for name in state)
    if "tiny or small" in flags.get("width", ""):
        flags["width"] = "--swin_type tiny" if blocks == 6 else "--swin_type small"
    return flags


def suggestion(state: dict[str, Tensor], own: dict[str, Tensor]) -> str:
    """What to change so that the weights fit, from where the two networks visibly differ; '' if they do not."""
    given, built = implied_flags(state), implied_flags(own)
    differing = [flag for kind, flag in given.items() if built.get(kind) != flag]
    return f". The weights suggest {', '.join(differing)}" if differing else ""
