"""The settings of the node: typed and frozen, from defaults, a TOML file, the environment and the command line.

``default.toml`` documents every key. An unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from config import routes
from config.ae_titles import (
    SIMILARITY_SUFFIX,
    AeTitleSettings,
    OwnTitle,
    own_titles,
    require_profiles,
    short_ae_title,
)
from config.application_entities import ApplicationEntity, ApplicationEntityTable, Right, network
from config.corrections import CorrectionSettings
from config.deidentification import DeidentificationSettings
from config.mistakes import one_sentence
from config.network import NetworkSettings
from config.orthanc import OrthancSettings
from config.plugins import PluginSettings
from config.routes import RouteSettings, RoutingSettings
from config.scan_quality import ScanQualitySettings
from config.sections import AETitle, NotNegative, Positive
from config.sections import Section as _Section
from config.site_mappings import SiteMapping

_ENVIRONMENT_PREFIX = "THARSIS_"
_NOT_SETTINGS = {"THARSIS_TEST_DATA", "THARSIS_PEER"}


class SettingsError(ValueError):
    """The settings cannot be used; the message is one sentence for the person who wrote them."""


Port = Annotated[int, Field(ge=0, le=65535)]


class ScpSettings(_Section):
    """``[scp]``: the network edge."""

    aet: Annotated[str, AfterValidator(short_ae_title)]
    host: str
    port: Port
    accept_unknown: bool
    unknown_rights: frozenset[Right]
    check_called_aet: bool
    max_associations: Annotated[int, Field(ge=1)]
    max_connections: Annotated[int, Field(ge=1)]
    max_pdu_bytes: Annotated[int, Field(ge=4096, le=1 << 20)]
    retrieve_associations: Annotated[int, Field(ge=1, le=16)]
    acse_timeout_s: Positive
    dimse_timeout_s: Positive
    network_timeout_s: Positive
    stop_grace_s: NotNegative

    @property
    def similarity_aet(self) -> str:
        """The second AE title, under which an ordinary query finds similar cases."""
        return self.aet + SIMILARITY_SUFFIX


class TlsSettings(_Section):
    """``[tls]``: secure transport connections (PS3.15 B.12)."""

    enabled: bool
    port: Port
    certificate: str
    key: str
    ca: str
    client_certificates: Literal["none", "optional", "required"]
    check_host: bool
    plain: bool

    @model_validator(mode="after")
    def _can_be_used(self) -> TlsSettings:
        if self.enabled and not (self.certificate and self.key):
            raise ValueError("TLS is enabled, so certificate and key have to name PEM files")
        if bool(self.certificate) != bool(self.key):
            raise ValueError("certificate and key go together")
        if not self.enabled and not self.plain:
            raise ValueError("plain = false needs enabled = true: else no port is open")
        return self


class ArchiveSettings(_Section):
    """``[archive]``: where things are stored."""

    data: Annotated[Path, AfterValidator(Path.expanduser)]
    settle_time_s: NotNegative
    overwrite: Literal["never", "same_source", "always"]
    patient_mismatch: Literal["accept", "reject"]
    reserve_mb: Annotated[int, Field(ge=0)]
    max_nesting: Annotated[int, Field(ge=8, le=128)]
    direct_io: bool


class JobSettings(_Section):
    """``[jobs]``: the durable queue and its workers."""

    workers: Annotated[int, Field(ge=1)]
    max_attempts: Annotated[int, Field(ge=1)]
    retry_delay_s: NotNegative
    claim_s: Positive
    stalled_s: Positive
    stop_grace_s: NotNegative
    nice: Annotated[int, Field(ge=0, le=19)]
    keep_days: NotNegative


class CommitmentSettings(_Section):
    """``[commitment]``: storage commitment."""

    retry_hours: NotNegative


class IntegritySettings(_Section):
    """``[integrity]``: stored files are read back while the node runs."""

    scrub_days: NotNegative
    scrub_mb_per_s: Positive


class RetentionSettings(_Section):
    """``[retention]``: how much is kept, and how long."""

    quota_gb: NotNegative
    when_full: Literal["refuse", "delete_oldest"]
    keep_days: NotNegative
    dry_run: bool


class ReconstructSettings(_Section):
    """``[reconstruct]``: projections to volumes."""

    enabled: bool
    memory_mb: Annotated[int, Field(ge=64)]
    filter: Literal["ram-lak", "shepp-logan", "cosine", "hamming", "hann"]
    cutoff: Annotated[float, Field(gt=0, le=1)]
    voxel_mm: NotNegative
    limited_arc: bool
    threads: Annotated[int, Field(ge=0)]
    device: Literal["cpu", "cuda", "auto"]
    scheduler: Annotated[
        str, Field(pattern=r"^((tcp|tls)://[^\s/]+:\d+)?$", description="tcp://HOST:PORT, tls://HOST:PORT or nothing")
    ]


class SegmentationSettings(_Section):
    """``[segmentation]``: volumes to DICOM SEG."""

    enabled: bool
    use: tuple[str, ...]
    images: Literal["reconstructed", "ct"]
    object: Literal["binary", "labelmap"]
    min_volume_mm3: NotNegative
    smoothing_voxels: NotNegative
    learned_model: Annotated[
        str,
        Field(pattern=r"^(segmenter-[0-9a-f]{12})?$", description="a model such as segmenter-0123456789ab, or nothing"),
    ]
    learned_flips: bool
    totalsegmentator_task: Literal["total", "total_mr"]
    totalsegmentator_fast: bool
    totalsegmentator_structures: tuple[str, ...]

    @field_validator("use")
    @classmethod
    def _names_each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        twice = {name for name in value if value.count(name) > 1}
        if twice:
            raise ValueError(f"names {sorted(twice)[0]!r} more than once")
        return value


MaterialName = Literal["water", "lipid", "hydroxyapatite", "bone", "iodine", "gadolinium", "gold"]


class MaterialSettings(_Section):
    """``[materials]``: energy bins to maps of materials."""

    enabled: bool
    use: Annotated[frozenset[MaterialName], Field(min_length=1)]
    sets: frozenset[str]
    most_together: Annotated[int, Field(ge=1, le=3)]
    penalty: NotNegative
    model_error: NotNegative
    most_filled: Annotated[float, Field(ge=1, le=2)]
    smoothing_voxels: NotNegative
    choice_voxels: NotNegative
    filtration_mm_al: NotNegative
    water_path_mm: Positive
    hardening_mm: NotNegative
    calibration: dict[MaterialName, tuple[float, ...]]
    objects: Annotated[frozenset[Literal["map", "ct"]], Field(min_length=1)]
    residual: bool


class ReportSettings(_Section):
    """``[report]``: stored segments to measurement reports and key pictures."""

    enabled: bool
    picture: bool
    foreign: bool
    min_volume_mm3: NotNegative
    picture_width: Annotated[int, Field(ge=640, le=4096)]


class SimilaritySettings(_Section):
    """``[similarity]``: embeddings and the similarity query."""

    enabled: bool
    max_frames_per_series: Annotated[int, Field(ge=1)]
    shortlist: Annotated[int, Field(ge=1)]
    default_k: Annotated[int, Field(ge=1, le=500)]
    decorate: bool
    echo: bool
    embed_timeout_s: Positive
    question_minutes: Positive
    question_images: Annotated[int, Field(ge=1)]
    exact_up_to: Annotated[int, Field(ge=1000)]
    hnsw_up_to: Annotated[int, Field(ge=0)]
    ivf_up_to: Annotated[int, Field(ge=0)]
    target_recall: Annotated[float, Field(gt=0, le=0.99)]
    rebuild_share: Annotated[float, Field(gt=0, le=1)]
    save_from: Annotated[int, Field(ge=1)]


class LogSettings(_Section):
    """``[logs]``."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"]


class ApplicationEntitySettings(_Section):
    """One ``[[application_entities]]``."""

    title: AETitle
    host: str = ""
    port: Port = 0
    rights: frozenset[Right] = frozenset()
    addresses: tuple[str, ...] = ()
    lenient: bool = False
    private_sop_classes: bool = False
    tls: bool = False
    profile: str = ""

    @field_validator("addresses")
    @classmethod
    def _are_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for address in value:
            try:
                network(address)
            except ValueError as error:
                what = f"{address!r} is no IP address and no network such as 192.0.2.0/24"
                raise ValueError(f"{what}: {error}") from error
        return value

    @model_validator(mode="after")
    def _address_is_whole(self) -> ApplicationEntitySettings:
        if bool(self.host) != bool(self.port):
            raise ValueError(f"{self.title}: host and port go together")
        return self


class Settings(_Section):
    """Everything that the node is told."""

    scp: ScpSettings
    network: NetworkSettings
    tls: TlsSettings
    archive: ArchiveSettings
    jobs: JobSettings
    plugins: PluginSettings
    commitment: CommitmentSettings
    integrity: IntegritySettings
    retention: RetentionSettings
    reconstruct: ReconstructSettings
    corrections: CorrectionSettings
    segmentation: SegmentationSettings
    materials: MaterialSettings
    report: ReportSettings
    scan_quality: ScanQualitySettings
    similarity: SimilaritySettings
    orthanc: OrthancSettings
    logs: LogSettings
    routing: RoutingSettings
    application_entities: tuple[ApplicationEntitySettings, ...] = ()
    ae_titles: tuple[AeTitleSettings, ...] = ()
    deidentification: tuple[DeidentificationSettings, ...] = ()
    routes: tuple[RouteSettings, ...] = ()
    site_mappings: tuple[SiteMapping, ...] = ()

    @model_validator(mode="after")
    def _names_are_unique(self) -> Settings:
        titles = [ae.title for ae in self.application_entities]
        profiles = [profile.name for profile in self.deidentification]
        for section, names in (("application_entities", titles), ("deidentification", profiles)):
            twice = {name for name in names if names.count(name) > 1}
            if twice:
                raise ValueError(f"{section} names {sorted(twice)[0]!r} more than once")
        require_profiles(self.titles_with_profiles(), {profile.name for profile in self.deidentification})
        return self

    def titles_with_profiles(self) -> list[tuple[str, str]]:
        """Return title and profile of each peer, and of each AE title of this node, that has one."""
        told = [(ae.title, ae.profile) for ae in self.application_entities]
        told += [(own.title, own.profile) for own in self.own_titles().values()]
        return [(title, profile) for title, profile in told if profile]

    def own_titles(self) -> dict[str, OwnTitle]:
        """Return every AE title that this node answers to, the main one first."""
        return own_titles(self.scp.aet, self.ae_titles)

    @model_validator(mode="after")
    def _routes_lead_somewhere(self) -> Settings:
        own = tuple(self.own_titles())
        destinations = {ae.title: bool(ae.host) for ae in self.application_entities}
        wrong = routes.mistake(self.routes, own, destinations, {each.name for each in self.deidentification})
        if wrong:
            raise ValueError(wrong)
        return self

    @model_validator(mode="after")
    def _orthanc_can_be_reached(self) -> Settings:
        own = self.orthanc
        if own.enabled and not any(ae.title == own.aet and ae.port for ae in self.application_entities):
            raise ValueError(
                f"orthanc: application_entities has to name {own.aet!r} with its host and port, for C-MOVE"
            )
        if own.enabled and any(ae.title == own.aet and ae.profile for ae in self.application_entities):
            raise ValueError(f"orthanc: {own.aet!r} has a profile, but Orthanc is given what was made as it is")
        return self

    def entity_table(self) -> ApplicationEntityTable:
        """Return the table of peers that the services ask about rights and destinations."""
        return ApplicationEntityTable(
            entities=tuple(
                ApplicationEntity(**ae.model_dump()) for ae in self.application_entities
            ),
            accept_unknown=self.scp.accept_unknown,
            unknown_rights=self.scp.unknown_rights,
        )


def load_settings(
    file: Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> Settings:
    """Read the settings: defaults, then `file`, then `environment`, then `overrides`.

    Parameters
    ----------
    file
        A TOML file with the keys to change.
    environment
        Variables to read ``THARSIS_<SECTION>_<KEY>`` from; ``os.environ`` when None.
    overrides
        ``{section: {key: value}}``, what the command line says.

    Raises
    ------
    SettingsError
        A file that cannot be read, an unknown key or a value of the wrong kind; the sentence names it.
    """
    tree = tomllib.loads(resources.files("config").joinpath("default.toml").read_text(encoding="utf-8"))
    known = _known_keys(tree)
    if file is not None:
        told = _read_toml(file)
        _refuse_unknown(told, known, str(file))
        _merge(tree, told)
    _merge(tree, _from_environment(os.environ if environment is None else environment, known))
    _refuse_unknown(overrides or {}, known, "command line")
    _merge(tree, overrides or {})
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise SettingsError(one_sentence(error, Settings)) from error


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read the settings file {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file} is not valid TOML: {error}") from error


def _known_keys(defaults: Mapping[str, Any]) -> dict[str, list[str]]:
    known = {section: list(keys) for section, keys in defaults.items()}
    known["application_entities"] = list(ApplicationEntitySettings.model_fields)
    known["ae_titles"] = list(AeTitleSettings.model_fields)
    known["routes"] = RouteSettings.keys()
    known["deidentification"] = list(DeidentificationSettings.model_fields)
    known["site_mappings"] = list(SiteMapping.model_fields)
    return known


_LISTS_OF_TABLES = ("application_entities", "ae_titles", "deidentification", "routes", "site_mappings")
"""Sections in double brackets, which no environment variable can tell."""


def _nearest(word: str, words: list[str]) -> str:
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.0)
    return near[0]


def _sections(told: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for section, content in told.items():
        for table in content if isinstance(content, list) else [content]:
            yield section, table


def _refuse_unknown(told: Mapping[str, Any], known: Mapping[str, list[str]], where: str) -> None:
    for section, table in _sections(told):
        if section not in known:
            raise SettingsError(
                f"{where}: unknown section [{section}]; the nearest is [{_nearest(section, list(known))}]"
            )
        if not isinstance(table, Mapping):
            raise SettingsError(
                f"{where}: {section} is a section, write {_heading(section)} and its keys below it, "
                f"got {section} = {table!r}"
            )
        for key in table:
            if key not in known[section]:
                raise SettingsError(
                    f"{where}: unknown key {key!r} in [{section}]; the nearest is {_nearest(key, known[section])!r}"
                )


def _heading(section: str) -> str:
    return f"[[{section}]]" if section in _LISTS_OF_TABLES else f"[{section}]"


def _merge(tree: dict[str, Any], told: Mapping[str, Any]) -> None:
    for section, content in told.items():
        if isinstance(content, Mapping):
            tree.setdefault(section, {}).update(content)
        else:
            tree[section] = content


def _from_environment(environment: Mapping[str, str], known: Mapping[str, list[str]]) -> dict[str, Any]:
    variables = {
        f"{_ENVIRONMENT_PREFIX}{section}_{key}".upper(): (section, key)
        for section, keys in known.items()
        if section not in _LISTS_OF_TABLES
        for key in keys
    }
    told: dict[str, Any] = {}
    for name, value in environment.items():
        if not name.startswith(_ENVIRONMENT_PREFIX) or name in _NOT_SETTINGS:
            continue
        if name not in variables:
            raise SettingsError(
                f"unknown environment variable {name}; the nearest is {_nearest(name, list(variables))}"
            )
        section, key = variables[name]
        told.setdefault(section, {})[key] = _split_if_list(section, key, value)
    return told


def _split_if_list(section: str, key: str, value: str) -> Any:
    annotation = Settings.model_fields[section].annotation
    field = annotation.model_fields[key].annotation if annotation is not None else None
    is_list = get_origin(field) in (frozenset, tuple) and bool(get_args(field))
    return [part.strip() for part in value.split(",") if part.strip()] if is_list else value
