"""The species that generated records are of: made up, the same for all three services."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

ENOUGH = 1 << 128
"""While so much is left of a digest, what is drawn from it is as good as even."""


class Draw:
    """A run of numbers that only its seed decides: chance that is the same everywhere."""

    def __init__(self, *seed: object) -> None:
        """Start from the words of the seed."""
        self._seed = "/".join(map(str, seed)).encode()
        self._turn = 0
        self._rest = 0

    def below(self, limit: int) -> int:
        """Return a whole number in [0, limit)."""
        if self._rest < ENOUGH:
            self._rest = int.from_bytes(self._digest(), "big")
        self._rest, number = divmod(self._rest, limit)
        return number

    def one_in(self, times: int) -> bool:
        """Return True once in so many times."""
        return self.below(times) == 0

    def hex(self, digits: int) -> str:
        """Return hexadecimal digits, at most 128."""
        return self._digest().hex()[:digits]

    def uuid(self) -> str:
        """Return a UUID of version 4."""
        h = self.hex(32)
        return f"{h[:8]}-{h[8:12]}-4{h[13:16]}-8{h[17:20]}-{h[20:]}"

    def _digest(self) -> bytes:
        self._turn += 1
        return hashlib.blake2b(self._seed + b"/%d" % self._turn).digest()


class Kingdom(NamedTuple):
    """A kingdom with its numbers in the two taxonomies, and one line of higher taxa below it."""

    name: str
    gbif: int
    aphia: int | None
    phylum: str
    class_: str
    order: str
    marine: bool


KINGDOMS = (
    Kingdom("Animalia", 1, 2, "Chordata", "Aves", "Passeriformes", marine=False),
    Kingdom("Animalia", 1, 2, "Arthropoda", "Insecta", "Lepidoptera", marine=False),
    Kingdom("Animalia", 1, 2, "Chordata", "Actinopterygii", "Gadiformes", marine=True),
    Kingdom("Animalia", 1, 2, "Mollusca", "Bivalvia", "Cardiida", marine=True),
    Kingdom("Animalia", 1, 2, "Cnidaria", "Anthozoa", "Scleractinia", marine=True),
    Kingdom("Plantae", 6, 3, "Tracheophyta", "Magnoliopsida", "Asterales", marine=False),
    Kingdom("Plantae", 6, 3, "Rhodophyta", "Florideophyceae", "Gigartinales", marine=True),
    Kingdom("Plantae", 6, 3, "Bryophyta", "Bryopsida", "Hypnales", marine=False),
    Kingdom("Fungi", 5, 4, "Ascomycota", "Sordariomycetes", "Xylariales", marine=False),
    Kingdom("Chromista", 4, 7, "Ochrophyta", "Phaeophyceae", "Laminariales", marine=True),
    Kingdom("Bacteria", 3, 6, "Cyanobacteria", "Cyanophyceae", "Nostocales", marine=True),
    Kingdom("Protozoa", 7, 5, "Mycetozoa", "Myxomycetes", "Physarales", marine=False),
)
INCERTAE_SEDIS = "incertae sedis"
INCERTAE_SEDIS_GBIF = 0

STEMS = (
    *("Abr", "Bel", "Cor", "Dav", "Encel", "Frag", "Gad", "Hyl", "Isoc", "Jun", "Kal"),
    *("Lolig", "Mol", "Nass", "Ost", "Pect"),
)
ENDS = ["ia", "us", "opsis", "ella", "ium", "ostoma", "ina", "aster"]
EPITHETS = (
    *("alba", "borealis", "californica", "dubia", "elegans", "fragilis", "gracilis"),
    *("hirsuta",),
)
MARKS = ["minor", "major", "vulgaris", "obscura", "nitida", "pallida", "rubra", "viridis"]
AUTHORS = (
    *("Linnaeus, 1758", "Gmelin, 1791", "Nutt.", "Sparrman, 1768", "(Richon) Rappaz"),
    *("Müller, 1776",),
)


class Taxon(NamedTuple):
    """A species, or the genus it stands in."""

    number: int
    kingdom: Kingdom
    family: str
    genus: str
    epithet: str
    author: str
    numbers: tuple[int, int, int, int, int]
    """Of its phylum, class, order, family and genus, below those of species."""

    @property
    def species(self) -> str:
        """Name of the species without its author."""
        return f"{self.genus} {self.epithet}"

    @property
    def synonym(self) -> str:
        """Another name that the species went by."""
        return f"{self.genus[:-1]}oides {self.epithet}"

    @property
    def marine(self) -> bool:
        """Whether OBIS has it."""
        return self.kingdom.marine


class Taxa:
    """So many species, spread over the kingdoms; the same for the same seed."""

    def __init__(self, seed: int, species: int) -> None:
        """Make them all: they are few."""
        self.all = [_taxon(seed, number) for number in range(species)]
        self.marine = [t for t in self.all if t.marine] or self.all

    def any_of(self, draw: Draw, *, marine: bool = False) -> Taxon:
        """Draw a species; the first ones come up more often, as common species do."""
        among = self.marine if marine else self.all
        return among[min(draw.below(len(among)), draw.below(len(among)))]


def _taxon(seed: int, number: int) -> Taxon:
    draw = Draw(seed, "taxon", number)
    kingdom = KINGDOMS[number % len(KINGDOMS)]
    # The number in the name keeps two species from having one name.
    family, genus_number = divmod(number, 4)
    genus = STEMS[family % len(STEMS)].lower() + ENDS[genus_number] + _letters(family)
    epithet = f"{EPITHETS[draw.below(8)]}-{MARKS[draw.below(8)]}{_letters(number)}"
    author = AUTHORS[draw.below(len(AUTHORS))]
    name = STEMS[family % len(STEMS)] + _letters(family) + "idae"
    genus = genus.capitalize()
    higher = (kingdom.phylum, kingdom.class_, kingdom.order, name, genus)
    phylum, class_, order, family_, genus_ = (1000 + Draw(h).below(900_000) for h in higher)
    numbers = (phylum, class_, order, family_, genus_)
    return Taxon(number, kingdom, name, genus, epithet, author, numbers)


def _letters(number: int) -> str:
    text = ""
    while number:
        number, rest = divmod(number, 20)
        text += "bcdfghjklmnpqrstvwxz"[rest]
    return text
