"""The jobs of the graph: one file a rule, thin glue from a block of settings and manifests to an artefact."""

from resurgence.stages.runtime import begin_imports

begin_imports()
