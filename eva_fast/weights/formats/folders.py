"""Folders for the Hugging Face hub, transformers and open_clip."""

from pathlib import Path

from eva_fast.errors import UsageError
from eva_fast.layers.block import LAYER_NORM_EPS
from eva_fast.layers.inputs import STATISTICS
from eva_fast.model import EvaViT
from eva_fast.weights import naming
from eva_fast.weights.formats.exported import (
    OWN_STATISTICS,
    WEIGHTS,
    ChannelStatistics,
    Exported,
    plain,
    text,
    write_json,
)
from eva_fast.weights.formats.timm import TIMM_GIVES, timm_model
from eva_fast.weights.writer import write

# OpenAI's text tower beside ViT-B/16: a start to change at will.
TEXT = dict(context_length=77, vocab_size=49408, width=512, heads=8, layers=12)


def write_hf(model: EvaViT, folder: Path, statistics: ChannelStatistics | None = None) -> Exported:
    _timm_folder(model, folder, statistics)
    return Exported(
        folder,
        "import timm\n\n"
        f"model = timm.create_model({text('local-dir:' + str(folder))}, pretrained=True).eval()\n"
        "# on the hub: hf-hub:ORGANISATION/NAME\n"
        + TIMM_GIVES
        + "\nfrom transformers import AutoModel\n\n"
        f"wrapped = AutoModel.from_pretrained({text(folder)}).eval()\n"
        "# wrapped(images).last_hidden_state and .pooler_output: the same\n",
    )


def write_hf_vit(model: EvaViT, folder: Path) -> Exported:
    sizes, (mean, std) = model.sizes, STATISTICS[model.variant.normalize]
    if model.variant.layer_scale is not None or model.variant.relative_bias != "none":
        raise UsageError(
            "transformers' ViTModel has neither LayerScale nor relative positions: the student is "
            "written as official, timm or hf"
        )
    config = dict(
        architectures=["ViTModel"],
        model_type="vit",
        image_size=sizes.img_size,
        patch_size=sizes.patch_size,
        num_channels=sizes.channels,
        hidden_size=sizes.embed_dim,
        num_hidden_layers=sizes.depth,
        num_attention_heads=sizes.num_heads,
        intermediate_size=sizes.mlp_hidden,
        hidden_act="gelu",
        layer_norm_eps=LAYER_NORM_EPS,
        qkv_bias=True,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        torch_dtype="float32",
    )
    side = dict(height=sizes.img_size, width=sizes.img_size)
    images = dict(
        image_processor_type="ViTImageProcessor",
        do_resize=True,
        size=side,
        resample=3,  # bicubic
        do_rescale=True,
        do_normalize=True,
        image_mean=mean,
        image_std=std,
    )
    write_json(folder / "config.json", config)
    if sizes.channels == 3:  # the library prepares no others
        write_json(folder / "preprocessor_config.json", images)
    write(folder / WEIGHTS, plain(model, naming.hf.VIT), {"format": "pt"})
    return Exported(
        folder,
        "from transformers import ViTModel\n\n"
        f"model = ViTModel.from_pretrained({text(folder)}, add_pooling_layer=False).eval()\n"
        + ("" if sizes.channels == 3 else OWN_STATISTICS)
        + "# model(images).last_hidden_state: all tokens after the last norm, [B,T,D]\n",
    )


def write_open_clip(model: EvaViT, folder: Path) -> Exported:
    sizes, (mean, std) = model.sizes, STATISTICS[model.variant.normalize]
    vision = dict(
        image_size=sizes.img_size,
        timm_model_name=f"local-dir:{folder}",
        timm_model_pretrained=True,
        timm_pool="avg",
        timm_proj="linear",
    )
    config = dict(
        model_cfg=dict(embed_dim=512, custom_text=True, vision_cfg=vision, text_cfg=TEXT),
        preprocess_cfg=dict(size=sizes.img_size, mean=mean, std=std, interpolation="bicubic"),
    )
    write_json(folder / "open_clip_config.json", config)
    _timm_folder(model, folder)
    return Exported(
        folder,
        "import open_clip\n\n"
        "# The text tower and both projections start fresh. The folder stands in its own\n"
        "# open_clip_config.json as timm_model_name: change it there when you move the folder.\n"
        "model = open_clip.create_model(\n"
        f"    {text('local-dir:' + str(folder))}, load_weights=False, pretrained_image=True\n"
        ").eval()\n"
        "# model.visual.trunk.forward_features(images): all tokens after the last norm, [B,T,D]\n"
        "# model.visual.trunk(images): the mean of the patch tokens, [B,D]\n",
    )


def _timm_folder(model: EvaViT, folder: Path, statistics: ChannelStatistics | None = None) -> None:
    """What timm reads of a folder: the model's name and arguments, preprocessing, weights."""
    sizes, (mean, std) = model.sizes, statistics or STATISTICS[model.variant.normalize]
    architecture, arguments = timm_model(model)
    pretrained = dict(
        num_classes=0,
        input_size=(sizes.channels, sizes.img_size, sizes.img_size),
        fixed_input_size=True,
        mean=mean,
        std=std,
        interpolation="bicubic",
        crop_pct=1.0,
        first_conv="patch_embed.proj",
        classifier="head",
    )
    config = dict(
        architecture=architecture,
        num_classes=0,
        num_features=sizes.embed_dim,
        global_pool="avg",
        model_args=arguments,
        pretrained_cfg=pretrained,
    )
    write_json(folder / "config.json", config)
    write(folder / WEIGHTS, plain(model, naming.timm.EVA), {"format": "pt"})
