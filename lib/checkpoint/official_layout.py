"""Translation between the original programs' checkpoint layout and this project's: entry names and shapes.

The original names are fixed by the files in circulation, misspellings included. A row of `NAMES` pairs the beginning
of a name in this project with its beginning in the original; `*` stands for a number that both have in common.
"""
import re
from collections.abc import Callable, Iterable

from torch import Tensor

from lib.windows import relative_position_index
from utils import UserError

_ROUTER = (("router.depthwise.", "rounting_func.dwc."), ("router.norm.", "rounting_func.norm.norm."),
           ("router.scale.", "rounting_func.fc_alpha."), ("router.angle.", "rounting_func.fc_theta."))
_ATTENTION = (("query.", "f_query.0."), ("key.", "f_key.0."), ("value.", "f_value.0."), ("language_project.", "W.0."))

NAMES: tuple[tuple[str, str], ...] = (
    ("text_encoder.bert.", "text_encoder."),
    ("backbone.patch_embed.", "backbone.patch_embed."),
    ("backbone.stages.*.blocks.", "backbone.layers.*.blocks."),
    ("backbone.stages.*.downsample.", "backbone.layers.*.downsample."),
    ("backbone.stages.*.fusion.visual_project.", "backbone.layers.*.fusion.vis_project.0."),
    *((f"backbone.stages.*.fusion.{ours}", f"backbone.layers.*.fusion.image_lang_att.{published}")
      for ours, published in _ATTENTION),
    ("backbone.stages.*.fusion.joint_project.", "backbone.layers.*.fusion.project_mm.0."),
    ("backbone.stages.*.language_gate.", "backbone.layers.*.res_gate."),
    ("backbone.stages.*.visual_gate.", "backbone.layers.*.visual_gate."),
    *((f"backbone.stages.*.intra_scale.rounds.{round}.{branch}.",
       f"backbone.layers.*.visual_residual.repblock.{published}{suffix}.")
      for round, suffix in ((0, ""), (1, "_2"))
      for branch, published in (("identity", "brb_identity"), ("pointwise", "brb_1x1"), ("spatial", "brb_3x3"))),
    ("backbone.norms.*.", "backbone.norm*."),
    ("cross_scale.reduce.", "backbone.cim.down_channel."),
    ("cross_scale.expand.", "backbone.cim.up_channel."),
    ("cross_scale.bn.", "backbone.cim.bn."),
    ("cross_scale.block.attention*.bn_in.", "backbone.cim.block.0.csa*.m.bn1."),
    ("cross_scale.block.attention*.down2.", "backbone.cim.block.0.csa*.m.DWConv1."),
    ("cross_scale.block.attention*.down3.", "backbone.cim.block.0.csa*.m.DWConv2."),
    ("cross_scale.block.attention*.qkv.", "backbone.cim.block.0.csa*.m.attention.qkv.c."),
    ("cross_scale.block.attention*.qkv_bn.", "backbone.cim.block.0.csa*.m.attention.qkv.bn."),
    ("cross_scale.block.attention*.token_project.", "backbone.cim.block.0.csa*.m.attention.proj."),
    ("cross_scale.block.attention*.value_conv.", "backbone.cim.block.0.csa*.m.attention.parallel_conv.1."),
    ("cross_scale.block.attention*.channel_project.", "backbone.cim.block.0.csa*.m.attention.to_out."),
    ("cross_scale.block.attention*.bn_out.", "backbone.cim.block.0.csa*.m.bn4."),
    ("cross_scale.block.attention*.conv_out.", "backbone.cim.block.0.csa*.m.conv."),
    *((f"cross_scale.block.intra.feed_forwards.{stage}.", f"backbone.cim.block.0.intra_ff.m.ff{stage + 1}.m.")
      for stage in range(4)),
    ("cross_scale.block.feed_forward.", "backbone.cim.block.0.ff.m."),
    ("cross_scale.fusions.*.local_embedding.0.", "backbone.cim.fusion.*.local_embedding."),
    ("cross_scale.fusions.*.local_embedding.1.", "backbone.cim.fusion.*.bn1."),
    ("cross_scale.fusions.*.global_gate.0.", "backbone.cim.fusion.*.global_act."),
    ("cross_scale.fusions.*.global_gate.1.", "backbone.cim.fusion.*.bn3."),
    ("cross_scale.fusions.*.global_embedding.0.", "backbone.cim.fusion.*.global_embedding."),
    ("cross_scale.fusions.*.global_embedding.1.", "backbone.cim.fusion.*.bn2."),
    ("cross_scale.guides.0.", "classifier.lg_layer3."),
    ("cross_scale.guides.1.", "classifier.lg_layer4."),
    ("cross_scale.blocks.*.", "classifier.msb1.msb.blocks.*."),
    *((f"decoder.levels.{level}.{ours}", f"classifier.{theirs.replace('.', f'_{4 - level}.', 1)}")
      for level in range(3)
      for ours, theirs in (("conv1.", "conv1."), ("bn1.", "bn1."), ("bn2.", "bn2."),
                           *((f"conv2.{router}", f"conv2.{published}") for router, published in _ROUTER),
                           ("conv2.", "conv2."))),
    ("decoder.head.", "classifier.conv1_1."),
)

# FIANet has other names for the modules that it shares with LAVT and RMSIN.
_RENAMED = (("backbone.layers.*.fusion.", "backbone.layers.*.context_pixel_attn."),
            ("backbone.layers.*.res_gate.", "backbone.layers.*.context_tanh_gate."),
            *((f"backbone.cim.{part}", f"backbone.tmem.{part}") for part in ("down_ch", "up_ch", "bn.", "fusion.")))
_ALIGNMENT = (
    *((f"{kind}_attention.{ours}", f"{short}_cross_attn.{published}")
      for kind, short in (("object", "go"), ("position", "sp")) for ours, published in _ATTENTION),
    ("object_gate.", "go_tanh_gating."), ("unused_embedding.", "go_embedding."), ("position_conv.", "conv1."))

FIANET_NAMES: tuple[tuple[str, str], ...] = (
    *((ours, published.replace(name, renamed)) for ours, published in NAMES
      for name, renamed in _RENAMED if published.startswith(name)),
    *((f"backbone.stages.*.alignment.{ours}", f"backbone.layers.*.object_position_align_blk.{published}")
      for ours, published in _ALIGNMENT),
    ("backbone.stages.*.alignment.channel_weights.0.", "backbone.layers.*.fc1."),
    ("backbone.stages.*.alignment.channel_weights.2.", "backbone.layers.*.fc2."),
    *((f"cross_scale.block.*.{ours}", f"backbone.tmem.block.*.{published}")
      for ours, published in (("norm1.", "norm1."), ("norm2.", "norm2."), ("mlp.0.", "ff.net.0."),
                              ("mlp.2.", "ff.net.3."), *((f"attention.{ours}", f"tma.{published}")
                                                         for ours, published in _ATTENTION))),
)

# Entries of original files that follow from the architecture or that nothing reads: name, reason.
IGNORED = (
    (r"\.relative_position_index$", "computed from the window"),
    (r"^text_encoder\.embeddings\.position_ids$", "0, 1, 2, …"),
    (r"^text_encoder\.pooler\.", "the pooler is not used"),
    (r"^classifier\.msb1\.msb\.(projs|fusion|revert_projs)\.", "LGCE's guide tokens are exchanged, then dropped"),
    (r"^classifier\.msb1\.patch_embed\.", "nothing in LGCE calls it"),
    (r"^classifier\.(msb[23]|lg_layer[12])\.", "blocks for LGCE's two finer maps, which nothing calls"),
)

_POINTWISE = re.compile(r"^(backbone\.stages\.\d+\.(fusion|alignment\.\w+_attention)"
                        r"|cross_scale\.block\.\d+\.attention)\..*\.weight$")  # Conv1d of width 1 there, linear here


def _translator(rows: list[tuple[str, str]]) -> Callable[[str], str | None]:
    """A function from a name to its translation by the first row that fits, or None."""
    patterns = [(re.compile("^" + re.escape(source).replace(r"\*", r"(\d+)")), target.replace("*", r"\g<1>"))
                for source, target in rows]

    def translate(name: str) -> str | None:
        for pattern, target in patterns:
            if match := pattern.match(name):
                return match.expand(target) + name[match.end():]
        return None

    return translate


_name_in_lavt, _name_in_fianet = _translator(list(NAMES)), _translator([*FIANET_NAMES, *NAMES])
native_name = _translator([(official, native) for native, official in (*NAMES, *FIANET_NAMES)])


def official_names(names: Iterable[str]) -> dict[str, str | None]:
    """{name in this project: name in the original program} of all entries of a network; None where there is none."""
    names = list(names)
    is_fianet = any(".alignment." in name for name in names)
    return {name: (_name_in_fianet if is_fianet else _name_in_lavt)(name) for name in names}


def is_ignored(name: str) -> bool:
    """Whether an entry of an original checkpoint (its name without `module.`) is one of `IGNORED`."""
    return any(re.search(pattern, name) for pattern, _ in IGNORED)


def published_entries(checkpoint: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """The weights of an original checkpoint, `{'model': …[, 'bert_model': …]}`, under their original names.

    Prefixes `module.` are removed, the text encoder of `bert_model` gets the name that it has inside `lavt_one`, and
    entries of `IGNORED` are dropped.
    """
    entries = {name.removeprefix("module."): value for name, value in checkpoint["model"].items()}
    for name, value in checkpoint.get("bert_model", {}).items():
        entries["text_encoder." + name.removeprefix("module.")] = value
    return {name: value for name, value in entries.items() if not is_ignored(name)}


def from_official(checkpoint: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """This project's state dict from an original checkpoint; the inverse of `to_official`.

    Entries without a row in `NAMES` keep their original names.
    """
    state = {}
    for name, value in published_entries(checkpoint).items():
        native = native_name(name) or name
        if _POINTWISE.match(native) and isinstance(value, Tensor) and value.dim() == 3 and value.shape[-1] == 1:
            value = value.squeeze(-1)
        state[native] = value
    return state


def to_official(state: dict[str, Tensor], split_text: bool) -> dict[str, dict[str, Tensor]]:
    """The weights of an original checkpoint from this project's state dict.

    `split_text` stores the text encoder beside the model as `bert_model`, as `lavt` does. The attention's index tables,
    which the original programs store, are computed from the size of the bias tables. Raises `UserError` for entries
    that the original networks do not have.
    """
    names = {name: official for name, official in official_names(state).items() if official is not None}
    if unknown := [name for name in state if name not in names]:
        raise UserError(f"the original layout has no name for {len(unknown)} entries of this network, the first of "
                        f"which is {unknown[0]}: a changed network can only be stored in this project's layout")
    model: dict[str, Tensor] = {}
    text: dict[str, Tensor] = {}
    for name, value in state.items():
        published = names[name]
        if published.startswith("text_encoder.") and split_text:
            text[published.removeprefix("text_encoder.")] = value
            continue
        model[published] = value.unsqueeze(-1) if _POINTWISE.match(name) else value
        if published.endswith(".relative_position_bias_table"):
            window = (round(value.shape[0] ** 0.5) + 1) // 2
            model[published.replace("bias_table", "index")] = relative_position_index(window)
    return {"model": model, "bert_model": text} if split_text else {"model": model}


def is_official(checkpoint: dict) -> bool:
    """Whether a checkpoint's weights have the original names rather than this project's."""
    return not any(str(name).startswith(("decoder.", "text_encoder.bert.")) for name in checkpoint["model"])
