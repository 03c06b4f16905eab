"""What the IPU runtime finds in a validation pass on the stand-in is what the single device finds."""

from __future__ import annotations

from typing import Any, Dict

import pytest

from tests.evaluation.test_findings import SEVERAL, SINGLE, assert_same, config_of, result_of, single_result
from tests.poptorch_contract.outcomes import ipu_runtime


@pytest.mark.parametrize("keys", [SINGLE, SEVERAL], ids=["one label", "several"])
def test_confusions_areas_and_mistakes_are_those_of_the_single_device(
    poptorch: Any, tmp_path: Any, keys: Dict[str, Any]
) -> None:
    config = config_of(tmp_path, runtime="ipu", layers_per_ipu=[2, 2], **keys)
    runtime = ipu_runtime(config)
    assert_same(result_of(runtime, config), single_result(config))
    runtime.close()
