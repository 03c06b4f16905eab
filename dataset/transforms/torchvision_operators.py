"""Makes `import torchvision` possible beside a torch that its compiled operators were not built for; import this before it.

A torchvision wheel built for CUDA does not load its operators (`nms`, `roi_align`, ...) into a CPU-only torch, and its import
then fails with "operator torchvision::nms does not exist", because it describes to torch.compile what it has not loaded. Only
its transforms are used here, which need none of them: so the operators are declared, without any code. Calling one raises
NotImplementedError. Where the operators do load, as with matching wheels, nothing is declared.
"""

from __future__ import annotations

from importlib.machinery import PathFinder
from importlib.util import find_spec
from typing import Optional

import torch

# The schemas of torchvision 0.28, whose Python code describes all of them.
_POOL = "float spatial_scale, SymInt pooled_height, SymInt pooled_width"
_SIZE = "SymInt batch_size, SymInt channels, SymInt height, SymInt width"
_MAPPED = "Tensor grad, Tensor rois, Tensor channel_mapping"
_QUANTIZED = "Tensor input, Tensor rois, float input_scale, int input_zero_point, float rois_scale, int rois_zero_point"
_CONV = (
    "Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt stride_h, SymInt stride_w, SymInt pad_h, "
    "SymInt pad_w, SymInt dilation_h, SymInt dilation_w, SymInt groups, SymInt offset_groups, bool use_mask"
)
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "box_iou_rotated(Tensor boxes1, Tensor boxes2) -> Tensor",
    f"roi_align(Tensor input, Tensor rois, {_POOL}, int sampling_ratio, bool aligned) -> Tensor",
    f"_roi_align_backward(Tensor grad, Tensor rois, {_POOL}, {_SIZE}, int sampling_ratio, bool aligned) -> Tensor",
    f"qroi_align({_QUANTIZED}, {_POOL}, int sampling_ratio, bool aligned) -> Tensor",
    f"roi_pool(Tensor input, Tensor rois, {_POOL}) -> (Tensor, Tensor)",
    f"_roi_pool_backward(Tensor grad, Tensor rois, Tensor argmax, {_POOL}, {_SIZE}) -> Tensor",
    f"ps_roi_align(Tensor input, Tensor rois, {_POOL}, int sampling_ratio) -> (Tensor, Tensor)",
    f"_ps_roi_align_backward({_MAPPED}, {_POOL}, int sampling_ratio, {_SIZE}) -> Tensor",
    f"ps_roi_pool(Tensor input, Tensor rois, {_POOL}) -> (Tensor, Tensor)",
    f"_ps_roi_pool_backward({_MAPPED}, {_POOL}, {_SIZE}) -> Tensor",
    f"deform_conv2d({_CONV}) -> Tensor",
    f"_deform_conv2d_backward(Tensor grad, {_CONV}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


def _declare() -> Optional[torch.library.Library]:
    """Declares what is missing. The declarations last as long as the returned object."""
    if _operators_load():
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in SCHEMAS:
        if not hasattr(torch.ops.torchvision, schema.split("(")[0]):
            library.define(schema)
    return library


def _operators_load() -> bool:
    """Loads torchvision's compiled operators, as its own import would do. True where there is no torchvision at all."""
    package = find_spec("torchvision")
    if package is None:
        return True
    extension = PathFinder.find_spec("_C", package.submodule_search_locations)
    if extension is None or extension.origin is None:
        return False
    try:
        torch.ops.load_library(extension.origin)
    except OSError:
        return False
    return True


_declared = _declare()
