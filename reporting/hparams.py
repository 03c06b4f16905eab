"""The settings of a run as TensorBoard's HPARAMS tab reads them: the messages of its plugin, without TensorFlow.

The tab sets the last value of each of a run's scalars beside them; it finds out by itself which settings differ between runs.
"""

from __future__ import annotations

import time
from typing import Any, Mapping


def session_start(settings: Mapping[str, Any]) -> Any:
    """A summary's value that says what a run is made with; null values are left out, lists are text."""
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    info = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
    for name, value in settings.items():
        if value is not None:
            _fill(info.hparams[name], value)
    return _value(metadata.SESSION_START_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_start_info=info))


def session_end() -> Any:
    """A summary's value that says that all steps were done."""
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    info = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=time.time())
    return _value(metadata.SESSION_END_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_end_info=info))


def _fill(field: Any, value: Any) -> None:
    if isinstance(value, bool):  # before numbers: True is one, too
        field.bool_value = value
    elif isinstance(value, (int, float)):
        field.number_value = value
    elif isinstance(value, (list, tuple)):
        field.string_value = " ".join(map(str, value))
    else:
        field.string_value = str(value)


def _value(tag: str, data: Any) -> Any:
    from tensorboard.compat.proto import summary_pb2
    from tensorboard.plugins.hparams import metadata

    about = metadata.create_summary_metadata(data)
    return summary_pb2.Summary.Value(tag=tag, metadata=about, tensor=metadata.NULL_TENSOR)
