"""What holds for a whole pipeline: the options of `Pipeline("name", every="1 second")`."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.model.options import option


@dataclass(frozen=True)
class Options:
    """What holds for the whole pipeline: `Pipeline("name", every="1 second")`."""

    every_s: float = option(
        0.25,
        doc="An epoch starts at least this long after the last.",
        unit="s",
        example=1.0,
        at_least=0.001,
        at_most=3600,
    )
    epoch_bytes_max: int = option(
        32 << 20,
        doc="Raw bytes that an epoch takes at most, for each worker thread.",
        unit="bytes",
        example=8 << 20,
        at_least=1,
        at_most=1 << 30,
    )
    epoch_records_max: int | None = option(
        None,
        doc="Records that an epoch takes at most; none means as many as there are bytes for.",
        example=1_000,
        at_least=1,
    )
    horizon_s: float = option(
        600.0,
        doc="A client-chosen id is known for this long, by the log's time.",
        unit="s",
        example=3600.0,
        at_least=0,
    )
    log_retention_s: float = option(
        3600.0,
        doc="The log is kept for this long after it was committed to tables.",
        unit="s",
        example=86_400.0,
        at_least=0,
    )
    stop_on_dead: bool = option(
        False,
        doc="Whether the dead-letter alarm stops the pipeline.",
        example=True,
    )
    segment_bytes_max: int = option(
        256 << 20,
        doc="A segment of the embedded log is sealed at this size.",
        unit="bytes",
        example=64 << 20,
        at_least=4096,
    )
    segment_age_max_s: float = option(
        3600.0,
        doc="A segment of the embedded log is sealed at this age.",
        unit="s",
        example=600.0,
        at_least=0,
    )
    table_files_max: int = option(
        100,
        doc="Data files that a table may have before small ones are made one.",
        example=50,
        at_least=2,
    )
    commits_per_checkpoint: int = option(
        64,
        doc="A table's log gets a checkpoint each so many commits.",
        example=100,
        at_least=2,
    )
    keep_commits_s: float = option(
        3600.0,
        doc="A table's commits can be read one by one for this long.",
        unit="s",
        example=600.0,
        at_least=0,
    )
    add_sources: bool = option(
        False,
        doc="Whether sources may be added while it runs, by those who may.",
        example=True,
    )
    private_addresses: bool = option(
        False,
        doc="Whether sources may ask addresses that are not public, such as this machine's.",
        example=True,
    )
    tokens: bool = option(
        False,
        doc="Whether every path asks for a token that allows it.",
        example=True,
    )
    tidy_every_s: float = option(
        60.0,
        doc="How often ids past the horizon and old log segments are forgotten.",
        unit="s",
        example=10.0,
        at_least=0,
    )
    retain_every_s: float = option(
        300.0,
        doc="How often rows past their table's retention are taken out.",
        unit="s",
        example=60.0,
        at_least=0,
    )
    sample_every_s: float = option(
        2.0,
        doc="How often it is noted what each role uses of the machine, in `samples`; 0 never.",
        unit="s",
        example=10.0,
        at_least=0,
        at_most=3600,
    )
    samples_retention_s: float = option(
        7 * 86_400.0,
        doc="Samples are kept for this long, and until that day is over.",
        unit="s",
        example=86_400.0,
        at_least=0,
    )
