"""Event files are read back with TensorBoard's own reader."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.context import RequestContext
from tensorboard.plugins import base_plugin
from tensorboard.plugins.hparams import api_pb2, backend_context, get_experiment, list_session_groups

from reporting import pictures
from reporting.records import Summary
from reporting.tensorboard import TensorBoardReporter
from tests.reporting.findings import CONFUSION, findings, multi_label_findings, run_record, views

ROOT = Path(__file__).resolve().parents[2]


def scalars(folder, tag):
    accumulator = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def test_tensorboard_reads_back_steps_and_validations(step_record, validation_record, tmp_path):
    reporter = TensorBoardReporter(tmp_path)
    reporter.step(step_record(step=1, loss=2.5))
    reporter.step(step_record(step=2, loss=1.5))
    reporter.validated(validation_record(step=2))
    reporter.close()
    assert scalars(tmp_path, "train/loss") == [(1, 2.5), (2, 1.5)]
    assert scalars(tmp_path, "validation/top1") == [(2, pytest.approx(0.990123))]


def test_tensorboard_has_the_area_of_several_labels(validation_record, tmp_path):
    reporter = TensorBoardReporter(tmp_path)
    reporter.validated(validation_record(step=2, multi_label=True, auc=0.75))
    reporter.close()
    assert scalars(tmp_path, "validation/auc") == [(2, 0.75)]


def test_gradient_norm_is_left_out_where_it_was_not_computed(step_record, tmp_path):
    reporter = TensorBoardReporter(tmp_path)
    reporter.step(step_record(grad_norm=None))
    reporter.close()
    assert "train/grad_norm" not in EventAccumulator(str(tmp_path)).Reload().Tags()["scalars"]


def test_resumed_run_hides_the_steps_that_it_repeats(step_record, tmp_path):
    interrupted = TensorBoardReporter(tmp_path)
    for step in (1, 2, 3, 4):
        interrupted.step(step_record(step=step, loss=1.0))
    interrupted.close()
    resumed = TensorBoardReporter(tmp_path, resumed_step=2)
    resumed.step(step_record(step=3, loss=2.0))
    resumed.close()
    assert scalars(tmp_path, "train/loss") == [(1, 1.0), (2, 1.0), (3, 2.0)]


def test_a_validation_is_on_disk_at_once(validation_record, tmp_path):
    reporter = TensorBoardReporter(tmp_path)
    reporter.validated(validation_record(step=7))
    assert [step for step, _ in scalars(tmp_path, "validation/loss")] == [7]
    reporter.close()


def test_writing_events_imports_no_torch(tmp_path):
    program = f"""
import sys
from pathlib import Path
from reporting.tensorboard import TensorBoardReporter
TensorBoardReporter(Path({str(tmp_path)!r})).close()
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_pictures_that_would_cost_too_much_wait_and_the_newest_are_there_in_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr("reporting.tensorboard.MOST_OF_THE_TIME", 0.0)
    reporter = TensorBoardReporter(tmp_path)
    reporter.began(run_record())
    for step in (2, 4, 6):
        reporter.found(findings(step=step))
    assert EventAccumulator(str(tmp_path)).Reload().Tags()["images"] == []
    reporter.close()
    accumulator = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in accumulator.Images("validation/confusion")] == [6]
    assert [event.step for event in accumulator.Images("validation/mistakes")] == [6]


def test_pictures_come_back_as_they_were_made(tmp_path, monkeypatch):
    monkeypatch.setattr("reporting.tensorboard.MOST_OF_THE_TIME", math.inf)
    reporter = TensorBoardReporter(tmp_path)
    reporter.began(run_record())
    reporter.found(findings(step=2))
    reporter.viewed(views(step=2))
    accumulator = EventAccumulator(str(tmp_path)).Reload()  # before close: a run that goes on can be watched
    names = ["model/attention", "model/position_similarity", "validation/confusion", "validation/mistakes"]
    assert sorted(accumulator.Tags()["images"]) == names
    found = {name: accumulator.Images(name) for name in names}
    assert {name: [event.step for event in events] for name, events in found.items()} == {name: [2] for name in names}
    picture = np.asarray(Image.open(io.BytesIO(found["validation/confusion"][0].encoded_image_string)))
    assert picture.shape[:2] == (found["validation/confusion"][0].height, found["validation/confusion"][0].width)
    np.testing.assert_array_equal(picture, pictures.confusion_picture(CONFUSION, ("zero", "one", "two")))
    reporter.close()


def test_areas_under_the_curves_are_scalars_of_their_classes(tmp_path):
    reporter = TensorBoardReporter(tmp_path)
    reporter.found(multi_label_findings(step=2))
    reporter.close()
    assert scalars(tmp_path, "validation_auc/Hernia") == [(2, 0.75)]
    tags = EventAccumulator(str(tmp_path)).Reload().Tags()
    assert "validation_auc/Mass" not in tags["scalars"]  # which has no positive sample
    assert tags["images"] == []


def test_the_settings_tab_sets_the_keys_of_runs_beside_their_final_figures(step_record, validation_record, tmp_path):
    for name, rate, right in (("a", 0.001, 0.5), ("b", 0.002, 0.75)):
        reporter = TensorBoardReporter(tmp_path / name)
        reporter.began(run_record(learning_rate=rate, max_grad_norm=None))
        reporter.step(step_record(step=1))
        reporter.validated(validation_record(step=1, top1=0.25))
        reporter.validated(validation_record(step=2, top1=right))
        reporter.finished(Summary(steps=2, seconds=1.0, interrupted="Ctrl-C" if name == "b" else None))
        reporter.close()
    experiment, sessions = settings_tab(tmp_path)
    assert {info.name for info in experiment.hparam_infos} == {"config", "learning_rate", "mixup", "layers_per_ipu"}
    found = {session.hparams["learning_rate"].number_value: session for session in sessions}
    assert set(found) == {0.001, 0.002}
    assert found[0.001].hparams["layers_per_ipu"].string_value == "1 2"
    assert found[0.001].hparams["mixup"].bool_value is False
    figures = {metric.name.tag: metric.value for metric in found[0.002].metric_values}
    assert (figures["validation/top1"], figures["train/loss"]) == (0.75, pytest.approx(1.234))
    done = {rate: session.sessions[0].status for rate, session in found.items()}
    assert done == {0.001: api_pb2.STATUS_SUCCESS, 0.002: api_pb2.STATUS_UNKNOWN}


def settings_tab(folder):
    """What TensorBoard's own plugin makes of the event files below `folder`: (experiment, a group for each run)."""
    multiplexer = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(folder))
    context = backend_context.Context(base_plugin.TBContext(data_provider=provider))
    request = api_pb2.GetExperimentRequest(experiment_name="")
    arguments = [RequestContext(), context, "", request]  # older versions take no request
    experiment = get_experiment.Handler(*arguments[: len(signature(get_experiment.Handler).parameters)]).run()
    wanted = api_pb2.ListSessionGroupsRequest(
        start_index=0,
        slice_size=10,
        allowed_statuses=[api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_SUCCESS],
        col_params=[{"hparam": info.name} for info in experiment.hparam_infos]
        + [{"metric": info.name} for info in experiment.metric_infos],
    )
    groups = list_session_groups.Handler(RequestContext(), context, "", wanted).run()
    return experiment, groups.session_groups
