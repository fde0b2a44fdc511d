"""The species that generated records are of: made up, the same for all three services."""

from __future__ import annotations

import hashlib
from typing import NamedTuple


class Draw:
    """A run of numbers that only its seed decides: chance that is the same everywhere."""

    def __init__(self, *seed: object) -> None:
        """Start from the words of the seed."""
        self._seed = "/".join(map(str, seed)).encode()
        self._turn = 0
        self._words: list[int] = []

    def below(self, limit: int) -> int:
        """Return a whole number in [0, limit)."""
        if not self._words:
            digest = hashlib.blake2b(self._seed + b"/%d" % self._turn).digest()
            self._words = [int.from_bytes(digest[n : n + 4], "big") for n in range(0, 64, 4)]
            self._turn += 1
        return self._words.pop() % limit

    def one_in(self, times: int) -> bool:
        """Return True once in so many times."""
        return self.below(times) == 0

    def hex(self, digits: int) -> str:
        """Return hexadecimal digits."""
        return "".join(f"{self.below(1 << 32):08x}" for _ in range(-(-digits // 8)))[:digits]

    def uuid(self) -> str:
        """Return a UUID of version 4."""
        h = self.hex(32)
        return f"{h[:8]}-{h[8:12]}-4{h[13:16]}-8{h[17:20]}-{h[20:]}"


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
    return Taxon(number, kingdom, name, genus.capitalize(), epithet, author)


def _letters(number: int) -> str:
    text = ""
    while number:
        number, rest = divmod(number, 20)
        text += "bcdfghjklmnpqrstvwxz"[rest]
    return text
