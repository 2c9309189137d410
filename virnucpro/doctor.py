"""``virnucpro doctor``: our numbers beside fair-esm's, on the user's own machine and weights.

Everything is computed on the spot: fair-esm in float32 on the same device is the truth, its own half
precision the comparison, and the speed is that of the same proteins through our packed forward."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from esm.model.esm2 import ESM2
from numpy.typing import NDArray
from torch import Tensor

from virnucpro.base.errors import UserError
from virnucpro.base.settings import LONGEST, LongProteins
from virnucpro.cuda import AMPERE
from virnucpro.cuda.devices import capability, current_device, device_name, parse_device
from virnucpro.engine.batch import PackedPieces, cut_into_pieces
from virnucpro.engine.load import build_model
from virnucpro.engine.outputs import Outputs, Residues, ResiduesInMemory
from virnucpro.engine.run import run_model
from virnucpro.models.esm2.alphabet import CLS, EOS, FIRST_RESIDUE
from virnucpro.models.esm2.checkpoint import load_checkpoint
from virnucpro.models.esm2.family import ESM2_FAMILY
from virnucpro.models.esm2.sizes import Architecture
from virnucpro.models.precision import DTYPES, INT8, dtype_name, exact_products, resolve_precision
from virnucpro.weights.locate import locate_checkpoint

State = dict[str, Tensor]

LIMITS = {torch.float32: 1e-6, torch.float16: 1e-5, torch.bfloat16: 1e-3, torch.int8: 1e-3}
"""Largest 1 - cosine of a pooled vector that passes, by precision."""


@dataclass
class Finding:
    """One way of computing the pooled embeddings, compared with fair-esm in float32 on the same device.

    Attributes:
        residue_error, pooled_error: largest absolute differences of the last layer.
        cosine_distance: largest 1 - cosine of a pooled vector. One channel holds most of a trained model's vector, so
            this sees little of the others.
        spread_error: root mean square, over proteins and channels, of a pooled value's error as a share of its
            channel's standard deviation between the proteins.
        neighbours: share of each protein's nearest others (by cosine, at most ten) that are the same ones.
        computed_by: the attention and the layers' steps.
        tokens_per_second: second of two runs.
        published: largest difference from what others have published for the model's weights, where anything is known.
    """

    name: str
    computed_by: str
    residue_error: float
    pooled_error: float
    cosine_distance: float
    spread_error: float
    neighbours: float
    tokens_per_second: float
    passed: bool = True
    published: float | None = None


def run_doctor(
    model: str, device: str | torch.device, *, proteins: int = 24, longest: int = LONGEST, logger: logging.Logger
) -> list[Finding]:
    """Compare every precision that the device computes with fair-esm in float32.

    Args:
        model: a released model's name, the path of a checkpoint, or "esm2_demo".
        device: "cuda", "cuda:N" or "cpu".
        proteins: how many random proteins of mixed length to run.

    Raises:
        UserError: an unknown model or device, or a model that does not fit.
    """
    device = parse_device(device)
    architecture, state = load_checkpoint(locate_checkpoint(model, logger.info))
    tokens = random_proteins(proteins, longest)
    known = PUBLISHED.get(Path(model).stem)
    if known is not None:
        tokens += ESM2_FAMILY.tokenizer().encode(list(known.proteins), [""] * len(known.proteins))
    try:
        findings = _findings(state, architecture, tokens, known, device, logger)
    except torch.OutOfMemoryError:
        raise UserError(
            f"{model} in float32, which the doctor compares with, needs about {architecture.parameters * 4e-9:.0f} GB, "
            f"and {device} has not that much free: take a smaller model, or fewer or shorter proteins"
        ) from None
    for line in format_findings(findings, model, device_name(device)).splitlines():
        logger.info(line)
    return findings


def _findings(
    state: State,
    architecture: Architecture,
    tokens: Sequence[np.ndarray],
    known: PublishedVectors | None,
    device: torch.device,
    logger: logging.Logger,
) -> list[Finding]:
    findings: list[Finding] = []

    def add(name: str, computed_by: str, found: Embedded, seconds: float) -> Finding:
        finding = compare(name, computed_by, found, truth, count / seconds)
        if known is not None:
            finding.published = known.distance([mean for _, mean in found[-len(known.proteins) :]])
        findings.append(finding)
        return finding

    with exact_products(), current_device(device):
        truth, seconds = embed_by_fair_esm(state, architecture, tokens, device, torch.float32)
        count = sum(len(ids) + 2 for ids in tokens)
        add("fair-esm float32", "its own", truth, seconds)
        for dtype in _dtypes(device):
            name = dtype_name(dtype)
            if dtype in (torch.float16, torch.bfloat16) and device.type == "cuda":
                theirs, seconds = embed_by_fair_esm(state, architecture, tokens, device, dtype)
                add(f"fair-esm {name}", "its own", theirs, seconds)
            try:
                ours, seconds, how = embed_packed(state, architecture, tokens, device, dtype, logger)
            except UserError as error:
                if dtype != DTYPES["int8"]:
                    raise
                logger.warning("int8 left out: %s", error)
                continue
            finding = add(f"virnucpro {name}", how, ours, seconds)
            finding.passed = finding.cosine_distance <= LIMITS[dtype]
    return findings


def random_proteins(count: int, longest: int, shortest: int = 2) -> list[np.ndarray]:
    """Token ids of random proteins of the twenty amino acids; lengths are log-normal about 295, as Swiss-Prot's."""
    generator = np.random.default_rng(0)
    lengths = np.clip(np.exp(generator.normal(np.log(295), 0.75, count)).round().astype(int), shortest, longest)
    lengths[0], lengths[-1] = longest, shortest
    return [generator.integers(FIRST_RESIDUE, FIRST_RESIDUE + 20, length, dtype=np.uint8) for length in lengths]


def format_findings(findings: Sequence[Finding], model: str, device: str) -> str:
    """A table, and a sentence that says whether all passed."""
    lines = [
        f"{model} on {device}, torch {torch.__version__}; errors against fair-esm in float32, last layer",
        "(spread: the pooled values' error, as a share of how far each channel differs between proteins; near: nearest",
        "neighbours that stay the same)",
        f"{'':24}  {'computed by':27}  {'residue':>8}  {'pooled':>8}  {'1-cosine':>8}  {'spread':>8}  {'near':>6}  "
        f"{'tokens/s':>10}",
    ]
    lines += [
        f"{one.name:24}  {one.computed_by:27}  {one.residue_error:8.1e}  {one.pooled_error:8.1e}  "
        f"{one.cosine_distance:8.1e}  {one.spread_error:8.1e}  {one.neighbours:6.1%}  "
        f"{one.tokens_per_second:10,.0f}  {'' if one.passed else 'TOO FAR OFF'}".rstrip()
        for one in findings
    ]
    if findings[0].published is not None:
        lines.append("largest difference from what is published for these weights, two proteins, values of up to 14:")
        lines += [f"{one.name:24}  {one.published:.1e}" for one in findings]
    failed = [one.name for one in findings if not one.passed]
    lines.append(
        f"not to be trusted on this device: {', '.join(failed)}; choose another precision and report this table"
        if failed
        else "all within their limits"
    )
    return "\n".join(lines)


Embedded = list[tuple[Tensor, Tensor]]
"""For each protein float32 residues ``(L, D)`` and their mean ``(D,)``, on the CPU."""


def _dtypes(device: torch.device) -> list[torch.dtype]:
    found = [torch.float32]
    if device.type == "cuda":
        best = resolve_precision("auto", device)
        found += [best] if best != torch.float32 else []
        if capability(device) >= AMPERE:
            found.append(DTYPES["bf16"])
        if capability(device) >= INT8:
            found.append(DTYPES["int8"])
    return found


def compare(name: str, computed_by: str, found: Embedded, truth: Embedded, rate: float) -> Finding:
    """The largest differences over all proteins."""
    # NumPy's max and min, because Python's can pass over what is not a number.
    residue = np.max([float((one[0] - other[0]).abs().max()) for one, other in zip(found, truth, strict=True)])
    pooled = np.max([float((one[1] - other[1]).abs().max()) for one, other in zip(found, truth, strict=True)])
    cosines = [
        float(torch.cosine_similarity(one[1].double(), other[1].double(), dim=0))
        for one, other in zip(found, truth, strict=True)
    ]
    vectors, exact = (np.stack([each[1].double().numpy() for each in one]) for one in (found, truth))
    return Finding(
        name,
        computed_by,
        float(residue),
        float(pooled),
        1 - float(np.min(cosines)),
        spread_error(vectors, exact),
        same_neighbours(vectors, exact),
        rate,
    )


def spread_error(found: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
    """See :attr:`Finding.spread_error`; of vectors ``(proteins, D)``."""
    spread = truth.std(axis=0)
    told_apart = spread > 0
    shares = (found - truth)[:, told_apart] / spread[told_apart]
    return float(np.sqrt((shares**2).mean())) if shares.size else 0.0


def same_neighbours(found: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
    """See :attr:`Finding.neighbours`; of vectors ``(proteins, D)``."""
    count = min(10, (len(truth) - 1) // 2)
    if count < 1:
        return 1.0

    def nearest(vectors: NDArray[np.float64]) -> NDArray[np.int64]:
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        likeness = unit @ unit.T
        np.fill_diagonal(likeness, -np.inf)
        return np.argpartition(-likeness, count, axis=1)[:, :count]

    pairs = zip(nearest(found), nearest(truth), strict=True)
    return float(np.mean([len(np.intersect1d(one, other)) / count for one, other in pairs]))


def embed_by_fair_esm(
    state: State, architecture: Architecture, proteins: Sequence[np.ndarray], device: torch.device, dtype: torch.dtype
) -> tuple[Embedded, float]:
    """Embed with fair-esm's own model and its own cast, protein by protein.

    Args:
        proteins: token ids of the residues.

    Returns:
        The embeddings, and the seconds of a second run.
    """
    with torch.device("meta"):
        model = ESM2(
            architecture.layers, architecture.embed_dim, architecture.heads, token_dropout=architecture.token_dropout
        )
    model.load_state_dict({name: tensor.to(device, torch.float32) for name, tensor in state.items()}, False, True)
    # Cast as fair-esm's users do, its rotary frequencies included.
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            _materialise(model, name, device)
    model = model.eval().to(dtype)

    def run() -> Embedded:
        found = []
        for ids in proteins:
            tokens = torch.tensor([[CLS, *ids.tolist(), EOS]], device=device)
            hidden = model(tokens, repr_layers=[architecture.layers])["representations"][architecture.layers][0, 1:-1]
            found.append((hidden.float().cpu(), hidden.float().mean(0).cpu()))
        return found

    return timed(run, device)


def _materialise(model: ESM2, name: str, device: torch.device) -> None:
    """Zeros for a head that the checkpoint does not bring (the contact head); it is not used here."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    shape = getattr(module, leaf).shape
    setattr(module, leaf, torch.nn.Parameter(torch.zeros(shape, device=device), requires_grad=False))


def embed_packed(
    state: State,
    architecture: Architecture,
    proteins: Sequence[np.ndarray],
    device: torch.device,
    dtype: torch.dtype,
    logger: logging.Logger,
) -> tuple[Embedded, float, str]:
    """Embed as a job does: the embeddings, the seconds of a second run, and what computed them."""
    model = build_model(state, architecture, device=device, dtype=dtype, logger=logger)
    lengths = np.array([len(ids) for ids in proteins])
    packed = PackedPieces(proteins, cut_into_pieces(lengths, LongProteins("full")), ESM2_FAMILY.tokenizer())
    last = architecture.layers

    def run() -> Embedded:
        names = [""] * len(proteins)
        kept = ResiduesInMemory((last,), architecture.embed_dim)
        residues = Residues(lengths, kept, names)
        outputs = Outputs(lengths, (last,), architecture.embed_dim, residues)
        run_model(model, [packed], outputs, names=names, logger=logger)
        outputs.finish()
        values = torch.from_numpy(kept.values[last])
        each = [values[start:][:length] for start, length in zip(residues.starts, lengths, strict=True)]
        return list(zip(each, torch.from_numpy(outputs.mean[last]), strict=True))

    embedded, seconds = timed(run, device)
    return embedded, seconds, f"{model.facts.attention}, {model.facts.layers_run}"


def timed(run: Callable[[], Embedded], device: torch.device) -> tuple[Embedded, float]:
    """The result of a second run, and its seconds; the first one warms up."""
    with torch.inference_mode():
        run()
        with _synchronised(device):
            started = time.perf_counter()
            found = run()
    return found, time.perf_counter() - started


@contextmanager
def _synchronised(device: torch.device) -> Iterator[None]:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    yield
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class PublishedVectors:
    """Some channels of proteins' mean vectors, last layer: for each channel a value of each protein."""

    proteins: tuple[bytes, ...]
    channels: Mapping[int, tuple[float, ...]]

    def distance(self, means: list[Tensor]) -> float:
        """The largest difference of one of these channels; ``means`` are float32 ``(D,)`` of each protein."""
        published = torch.tensor(list(self.channels.values()), dtype=torch.float32)
        return float((torch.stack(means)[:, list(self.channels)].T - published).abs().max())


PUBLISHED = {
    "esm2_t36_3B_UR50D": PublishedVectors(
        proteins=(
            b"YFAASFAAFSSAIASFAASIALPFAAIASAAFLIASASSARFSIASFSSAIRLPLLA",
            b"STFFNRFFQFCNTFTFRRFFRRFQFRNRFFRRFNRFTFRRHRFRRFFNRFCQFCTFH",
        ),
        channels={
            0: (0.01102, 0.08435),
            160: (-0.12657, -0.11405),
            320: (-0.12869, -0.18860),
            461: (-1.81791, -0.08296),
            480: (-0.19841, -0.04272),
            640: (-0.09480, -0.32030),
            800: (0.05432, -0.00386),
            960: (0.08380, 0.08105),
            1120: (0.02862, -0.03027),
            1280: (0.13032, 0.10063),
            1440: (0.00416, 0.03046),
            1512: (1.48058, 0.40431),
            1517: (-0.58308, -0.40468),
            1542: (12.42389, 13.57237),
            1600: (0.04226, 0.08616),
            1760: (0.11522, 0.06697),
            1886: (-0.00471, -0.61050),
            1904: (0.03322, -0.48511),
            1920: (-0.10998, -0.15001),
            2080: (0.00365, -0.07496),
            2106: (-0.19460, -0.92392),
            2240: (-0.11382, 0.08458),
            2400: (-0.11967, -0.00430),
            2502: (0.74908, 0.33498),
        },
    ),
}
"""By model. 3B: ``output_1_ESM.pt`` of the original VirNucPro, whose embeddings are fair-esm's, published with
https://github.com/broadinstitute/virnucpro-broad: the channels of largest values, and every 160th."""
