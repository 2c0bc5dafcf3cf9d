"""Beam's in-process runner, whose worker processes start without noise."""

from __future__ import annotations

import logging
import shlex
import sys
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import python_urns
from apache_beam.runners.portability.fn_api_runner import fn_runner


class LocalRunner(fn_runner.FnApiRunner):
    """`FnApiRunner`; with `multi_processing` its workers are `pipeline.worker`, unless verbose."""

    def run_via_runner_api(self, pipeline_proto: Any, options: PipelineOptions) -> Any:
        """Run a translated pipeline; called by Beam."""
        if not logging.getLogger("apache_beam").isEnabledFor(logging.INFO):
            command = f"{shlex.quote(sys.executable)} -m pipeline.worker"
            for environment in pipeline_proto.components.environments.values():
                if environment.urn == python_urns.SUBPROCESS_SDK:
                    environment.payload = command.encode()
        return super().run_via_runner_api(pipeline_proto, options)
