"""The file that describes a pool: the sources and the upstream section of an experiment."""

from pathlib import Path

from pydantic import Field, ValidationError

from lethe.config.checks import source_problems
from lethe.config.data_settings import Source, Upstream, split_source
from lethe.config.loading import with_line
from lethe.config.messages import explain
from lethe.config.settings import Name, Seed, Settings
from lethe.config.yaml_file import YamlFile, read_yaml
from lethe.errors import ExperimentError


class PoolSettings(Settings):
    """Everything that a pool of upstream examples is drawn from."""

    seed: Seed = Field(0, description="Seed of the draw and of the examples that are held out.")
    sources: dict[Name, Source] = Field(
        description="Sources of examples. Domains name them as <key>:<where>."
    )
    upstream: Upstream = Field(description="The domains, and the number of examples.")

    def source_of(self, domain: str) -> tuple[Source, str]:
        """The source of a domain, and the part of it that the domain reads."""
        key, where = split_source(self.upstream.domains[domain])
        return self.sources[key], where


def load_pool_settings(path: Path) -> PoolSettings:
    """Reads the file of a pool, or the same sections of a complete experiment.

    Raises
    ------
    ExperimentError
        With every problem: line, key, value seen, and which values are allowed.
    """
    if not path.is_file():
        raise ExperimentError(str(path), ["there is no such file"])
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ExperimentError(str(path), ["is no mapping with the keys sources and upstream"])
    if "experiment" in content:
        # An experiment has checks of its own for its other sections.
        content = {key: content[key] for key in PoolSettings.model_fields if key in content}
    try:
        settings = PoolSettings.model_validate(content)
    except ValidationError as error:
        problems = [explain(problem) for problem in error.errors()]
    else:
        users = {}
        for domain, source in settings.upstream.domains.items():
            users[f"upstream.domains.{domain}"] = source
        problems = source_problems(settings.sources, users)
        if settings.upstream.pool is not None:
            problems.append(
                f"upstream.pool: {settings.upstream.pool!r} is a finished pool, so there is "
                "nothing to draw; give domains and examples to draw another"
            )
        if not problems:
            return settings
    file = YamlFile.parse(path)
    raise ExperimentError(str(path), [with_line(problem, [file]) for problem in problems])
