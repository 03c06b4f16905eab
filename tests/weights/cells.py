"""The cells of the conversion table: each makes a model in one library, converts it, and gives the largest difference of logits.

`benchmarks/conversion_table.py` prints them; `test_conversions.py` holds them to 1e-5.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any, Callable, Dict, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

import dataset.transforms.torchvision_operators  # noqa: F401  # isort: skip  (both import torchvision)
import timm
import transformers

import convert
from tests.weights import peers
from tests.weights.peers import PUBLISHED, TOY, Sizes


class Cell(NamedTuple):
    """One conversion. `measure(folder)` gives the largest difference of logits."""

    source: str
    target: str
    model: str
    measure: Callable[[Path], float]
    is_slow: bool = False

    @property
    def reads_pickles(self) -> bool:
        return ".bin" in self.source or self.source.startswith("app ")

    @property
    def exports(self) -> bool:
        return self.target.startswith(("ONNX", "torch.export"))


def read_hugging_face(folder: Path, sizes: Sizes, **saving: Any) -> float:
    model = peers.hugging_face(sizes)
    model.save_pretrained(folder, **saving)
    return peers.difference(peers.ours(folder), model, sizes)


def read_hugging_face_bin(folder: Path, sizes: Sizes, shards: int = 1) -> float:
    """Written by hand: transformers 5 saves no `.bin` any more. The names are its own, in memory."""
    model = peers.hugging_face(sizes)
    model.config.save_pretrained(folder)
    write_bins(folder, model.state_dict(), shards)
    return peers.difference(peers.ours(folder), model, sizes)


def write_bins(folder: Path, state: Dict[str, torch.Tensor], shards: int) -> None:
    import json

    if shards == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return
    weight_map = {}
    for shard in range(shards):
        file = f"pytorch_model-{shard + 1:05d}-of-{shards:05d}.bin"
        names = list(state)[shard::shards]
        torch.save({name: state[name] for name in names}, folder / file)
        weight_map.update(dict.fromkeys(names, file))
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


def read_hugging_face_encoder(folder: Path, sizes: Sizes) -> float:
    """Without a classifier: what the pooler gives."""
    model = peers.shaken(transformers.ViTModel(peers.hugging_face_config(sizes)))
    model.save_pretrained(folder)
    return peers.difference(peers.ours(folder), model, sizes)


def read_deit(folder: Path, with_teacher: bool) -> float:
    model = peers.deit(TOY, with_teacher)
    model.save_pretrained(folder)
    return peers.difference(peers.ours(folder), model, TOY)


def read_timm_folder(folder: Path, sizes: Sizes, name: str = "vit_base_patch16_224") -> float:
    model = peers.timm_model(sizes, name)
    peers.save_timm(model, folder)
    return peers.difference(peers.ours(folder), model, sizes)


def read_timm_file(folder: Path, sizes: Sizes) -> float:
    model = peers.timm_model(sizes)
    save_file(model.state_dict(), str(folder / "model.safetensors"))
    return peers.difference(peers.ours(folder / "model.safetensors", num_heads=sizes.heads), model, sizes)


def read_npz(folder: Path, sizes: Sizes, pre_logits: int = 0) -> float:
    arrays = peers.google_arrays(sizes, pre_logits)
    np.savez(folder / "model.npz", **arrays)
    return peers.difference(peers.ours(folder / "model.npz"), peers.FlaxViT(arrays), sizes)


def read_npz_as_timm(folder: Path, sizes: Sizes) -> float:
    np.savez(folder / "model.npz", **peers.google_arrays(sizes))
    model = peers.timm_model(sizes)
    model.load_pretrained(str(folder / "model.npz"))
    return peers.difference(peers.ours(folder / "model.npz"), model.eval(), sizes)


def start(folder: Path, **changes: Any) -> Path:
    """A model of this project to convert from, as a step folder: made from Hugging Face's, so that all its weights matter."""
    sizes = changes.pop("sizes", TOY)
    peers.hugging_face(sizes, **changes).save_pretrained(folder / "start_hf")
    run(folder / "start_hf", folder / "start", "--to", "pipevit")
    return folder / "start"


def run(source: Path, target: Path, *flags: str) -> str:
    """convert.py as a user calls it; gives what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert convert.main([str(source), str(target), *flags]) == 0
    return printed.getvalue()


def through_own(folder: Path) -> float:
    first = peers.hugging_face(TOY)
    first.save_pretrained(folder / "hf")
    run(folder / "hf", folder / "step", "--to", "pipevit")
    return peers.difference(peers.ours(folder / "step"), first, TOY)


def write_hugging_face(folder: Path, sizes: Sizes) -> float:
    source = start(folder, sizes=sizes, layer_norm_eps=1e-6)
    run(source, folder / "out", "--to", "huggingface")
    model = transformers.AutoModelForImageClassification.from_pretrained(folder / "out").eval()
    return peers.difference(peers.ours(source), model, sizes)


def write_hugging_face_encoder(folder: Path) -> float:
    model = peers.shaken(transformers.ViTModel(peers.hugging_face_config(TOY)))
    model.save_pretrained(folder / "hf")
    run(folder / "hf", folder / "out", "--to", "huggingface")
    written = transformers.AutoModel.from_pretrained(folder / "out").eval()
    return peers.difference(written, model, TOY)


def write_deit(folder: Path, with_teacher: bool) -> float:
    model = peers.deit(TOY, with_teacher)
    model.save_pretrained(folder / "hf")
    run(folder / "hf", folder / "out", "--to", "huggingface")
    return peers.difference(type(model).from_pretrained(folder / "out").eval(), model, TOY)


def write_timm(folder: Path, sizes: Sizes) -> float:
    source = start(folder, sizes=sizes, layer_norm_eps=1e-6)
    run(source, folder / "out", "--to", "timm")
    model = timm.create_model(f"local-dir:{folder / 'out'}", pretrained=True).eval()
    return peers.difference(peers.ours(source), model, sizes)


def write_timm_file(folder: Path) -> float:
    source = start(folder, layer_norm_eps=1e-6)
    run(source, folder / "out.safetensors")
    model = peers.timm_model(TOY, checkpoint_path="")
    timm.models.load_checkpoint(model, str(folder / "out.safetensors"))
    return peers.difference(peers.ours(source), model, TOY)


def write_timm_distilled(folder: Path) -> float:
    model = peers.timm_model(TOY, "deit_tiny_distilled_patch16_224")
    peers.save_timm(model, folder / "in")
    run(folder / "in", folder / "out", "--to", "timm")
    return peers.difference(timm.create_model(f"local-dir:{folder / 'out'}", pretrained=True).eval(), model, TOY)


APP = TOY._replace(width=128, heads=2)  # 64 features a head, as in all of the app's models


def read_app(folder: Path, fp16: bool, representation: int = 0) -> float:
    model = peers.shaken(peers.AppViT(APP, representation))
    model = model.half() if fp16 else model
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return peers.difference(peers.ours(folder), model.float(), APP)


def write_app(folder: Path, fp16: bool, pre_logits: int = 0) -> float:
    np.savez(folder / "model.npz", **peers.google_arrays(APP, pre_logits))
    run(folder / "model.npz", folder / "app", "--to", "app", *(("--dtype", "fp16") if fp16 else ()))
    model = peers.AppViT(APP, pre_logits)
    model.load_state_dict(torch.load(folder / "app" / "pytorch_model.bin", weights_only=True))
    return peers.difference(model, rounded(peers.ours(folder / "model.npz"), fp16), APP)


def write_app_hugging_face(folder: Path, fp16: bool) -> float:
    """Opened by transformers, of which the app's fine-tuning model is a subclass."""
    source = start(folder, layer_norm_eps=1e-6)
    run(source, folder / "out", "--to", "app-hf", *(("--dtype", "fp16") if fp16 else ()))
    assert [path.name for path in (folder / "out").glob("*.bin")] == ["pytorch_model.bin"]
    model = transformers.AutoModelForImageClassification.from_pretrained(folder / "out").float().eval()
    return peers.difference(model, rounded(peers.ours(source), fp16), TOY)


def rounded(model: nn.Module, fp16: bool) -> nn.Module:
    """Weights as they are after being stored in 16 bits; computed in float32."""
    return model.half().float() if fp16 else model


def write_onnx(folder: Path, sizes: Sizes) -> float:
    import onnxruntime

    source = start(folder, sizes=sizes)
    run(source, folder / "out.onnx")
    session = onnxruntime.InferenceSession(str(folder / "out.onnx"), providers=["CPUExecutionProvider"])
    model = peers.ours(source)
    differences = []
    for count in (1, 3):
        images = peers.pixels(sizes, count)
        (logits,) = session.run(None, {"pixels": images.numpy()})
        assert logits.shape == (count, sizes.classes)
        with torch.no_grad():
            differences.append(float((torch.from_numpy(logits) - model(images)).abs().max()))
    return max(differences)


def write_exported_program(folder: Path, sizes: Sizes) -> float:
    source = start(folder, sizes=sizes)
    run(source, folder / "out.pt2")
    program = torch.export.load(str(folder / "out.pt2")).module()
    return peers.difference(program, peers.ours(source), sizes)


def cells() -> Dict[str, Cell]:
    """All cells by a name for tests."""
    rows = [
        Cell("Hugging Face", "PipeViT", "toy", lambda f: read_hugging_face(f, TOY)),
        Cell("Hugging Face, 4 shards", "PipeViT", "toy", lambda f: read_hugging_face(f, TOY, max_shard_size="15KB")),
        Cell("Hugging Face .bin", "PipeViT", "toy", lambda f: read_hugging_face_bin(f, TOY)),
        Cell("Hugging Face .bin, 3 shards", "PipeViT", "toy", lambda f: read_hugging_face_bin(f, TOY, 3)),
        Cell("Hugging Face encoder", "PipeViT", "toy", lambda f: read_hugging_face_encoder(f, TOY)),
        Cell("Hugging Face DeiT", "PipeViT", "toy", lambda f: read_deit(f, False)),
        Cell("Hugging Face DeiT, two heads", "PipeViT", "toy", lambda f: read_deit(f, True)),
        Cell("timm folder", "PipeViT", "toy", lambda f: read_timm_folder(f, TOY)),
        Cell("timm file", "PipeViT", "toy", lambda f: read_timm_file(f, TOY)),
        Cell(
            "timm DeiT, two heads",
            "PipeViT",
            "toy",
            lambda f: read_timm_folder(f, TOY, "deit_tiny_distilled_patch16_224"),
        ),
        Cell("Google npz", "PipeViT", "toy", lambda f: read_npz(f, TOY)),
        Cell("Google npz, pre-logits", "PipeViT", "toy", lambda f: read_npz(f, TOY, pre_logits=20)),
        Cell("Google npz, by timm's reader", "PipeViT", "toy", lambda f: read_npz_as_timm(f, TOY)),
        Cell("Hugging Face", "step folder, and in again", "toy", through_own),
        Cell("PipeViT", "Hugging Face", "toy", lambda f: write_hugging_face(f, TOY)),
        Cell("PipeViT, no head", "Hugging Face encoder", "toy", write_hugging_face_encoder),
        Cell("PipeViT, distillation", "Hugging Face DeiT", "toy", lambda f: write_deit(f, False)),
        Cell("PipeViT, two heads", "Hugging Face DeiT", "toy", lambda f: write_deit(f, True)),
        Cell("PipeViT", "timm folder", "toy", lambda f: write_timm(f, TOY)),
        Cell("PipeViT", "timm file", "toy", write_timm_file),
        Cell("PipeViT, two heads", "timm DeiT", "toy", write_timm_distilled),
        Cell("app pretraining", "PipeViT", "toy", lambda f: read_app(f, False)),
        Cell("app pretraining fp16, pre-logits", "PipeViT", "toy", lambda f: read_app(f, True, 128)),
        Cell("PipeViT", "app pretraining", "toy", lambda f: write_app(f, False)),
        Cell("PipeViT", "app pretraining fp16, pre-logits", "toy", lambda f: write_app(f, True, 128)),
        Cell("PipeViT", "app fine-tuning", "toy", lambda f: write_app_hugging_face(f, False)),
        Cell("PipeViT", "app fine-tuning fp16", "toy", lambda f: write_app_hugging_face(f, True)),
        Cell("PipeViT", "ONNX, batch 1, 3, 17", "toy", lambda f: write_onnx(f, TOY)),
        Cell("PipeViT", "torch.export", "toy", lambda f: write_exported_program(f, TOY)),
    ]
    for model, sizes in PUBLISHED.items():
        rows += [
            Cell("Hugging Face", "PipeViT", model, lambda f, sizes=sizes: read_hugging_face(f, sizes), True),
            Cell(
                "Hugging Face encoder",
                "PipeViT",
                model,
                lambda f, sizes=sizes: read_hugging_face_encoder(f, sizes),
                True,
            ),
            Cell("timm folder", "PipeViT", model, lambda f, sizes=sizes: read_timm_folder(f, sizes), True),
            Cell("Google npz", "PipeViT", model, lambda f, sizes=sizes: read_npz(f, sizes), True),
        ]
    base = PUBLISHED["Ti/16"]
    rows += [
        Cell("PipeViT", "Hugging Face", "Ti/16", lambda f: write_hugging_face(f, base), True),
        Cell("PipeViT", "timm folder", "Ti/16", lambda f: write_timm(f, base), True),
        Cell("PipeViT", "ONNX, batch 1, 3, 17", "Ti/16", lambda f: write_onnx(f, base), True),
        Cell("PipeViT", "torch.export", "Ti/16", lambda f: write_exported_program(f, base), True),
    ]
    return {f"{cell.source} to {cell.target} ({cell.model})": cell for cell in rows}
