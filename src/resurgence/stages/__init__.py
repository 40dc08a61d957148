"""The jobs of the graph: one file for each rule, which makes an artefact from settings and manifests."""

from resurgence.stages.runtime import begin_imports

begin_imports()
