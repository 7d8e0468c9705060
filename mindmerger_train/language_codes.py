"""Source-language tokens of translation encoders: which ids stand before and after a text in a given language.

NLLB names languages `spa_Latn`, M2M100 `__es__`, mBART `es_XX`; here they are `es` (ISO 639-1). What comes out is plain ids per
language, so that whoever tokenises later needs neither these names nor transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mindmerger.errors import CheckpointError

# ISO 639-1 → FLORES-200, where it is not the only one or not what one would guess (macrolanguages, scripts).
_FLORES = """
af afr_Latn|am amh_Ethi|ar arb_Arab|as asm_Beng|ay ayr_Latn|az azj_Latn|ba bak_Cyrl|be bel_Cyrl|bg bul_Cyrl|bm bam_Latn|
bn ben_Beng|bo bod_Tibt|bs bos_Latn|ca cat_Latn|cs ces_Latn|cy cym_Latn|da dan_Latn|de deu_Latn|dz dzo_Tibt|ee ewe_Latn|
el ell_Grek|en eng_Latn|eo epo_Latn|es spa_Latn|et est_Latn|eu eus_Latn|fa pes_Arab|ff fuv_Latn|fi fin_Latn|fj fij_Latn|
fo fao_Latn|fr fra_Latn|ga gle_Latn|gd gla_Latn|gl glg_Latn|gn grn_Latn|gu guj_Gujr|ha hau_Latn|he heb_Hebr|hi hin_Deva|
hr hrv_Latn|ht hat_Latn|hu hun_Latn|hy hye_Armn|id ind_Latn|ig ibo_Latn|is isl_Latn|it ita_Latn|ja jpn_Jpan|jv jav_Latn|
ka kat_Geor|kg kon_Latn|ki kik_Latn|kk kaz_Cyrl|km khm_Khmr|kn kan_Knda|ko kor_Hang|ku kmr_Latn|ky kir_Cyrl|lb ltz_Latn|
lg lug_Latn|li lim_Latn|ln lin_Latn|lo lao_Laoo|lt lit_Latn|lv lvs_Latn|mg plt_Latn|mi mri_Latn|mk mkd_Cyrl|ml mal_Mlym|
mn khk_Cyrl|mr mar_Deva|ms zsm_Latn|mt mlt_Latn|my mya_Mymr|nb nob_Latn|ne npi_Deva|nl nld_Latn|nn nno_Latn|no nob_Latn|
ny nya_Latn|oc oci_Latn|om gaz_Latn|or ory_Orya|pa pan_Guru|pl pol_Latn|ps pbt_Arab|pt por_Latn|qu quy_Latn|rn run_Latn|
ro ron_Latn|ru rus_Cyrl|rw kin_Latn|sa san_Deva|sc srd_Latn|sd snd_Arab|sg sag_Latn|si sin_Sinh|sk slk_Latn|sl slv_Latn|
sm smo_Latn|sn sna_Latn|so som_Latn|sq als_Latn|sr srp_Cyrl|ss ssw_Latn|st sot_Latn|su sun_Latn|sv swe_Latn|sw swh_Latn|
ta tam_Taml|te tel_Telu|tg tgk_Cyrl|th tha_Thai|ti tir_Ethi|tk tuk_Latn|tl tgl_Latn|tn tsn_Latn|tr tur_Latn|ts tso_Latn|
tt tat_Cyrl|tw twi_Latn|ug uig_Arab|uk ukr_Cyrl|ur urd_Arab|uz uzn_Latn|vi vie_Latn|wo wol_Latn|xh xho_Latn|yi ydd_Hebr|
yo yor_Latn|zh zho_Hans|zu zul_Latn
"""
FLORES = dict(entry.split() for entry in _FLORES.replace("\n", "").split("|"))

# The wanted token of the classes whose tokenizers name source languages, and where it goes.
_SHAPES = {
    "nllb": (re.compile(r"[a-z]{3}_[A-Z][a-z]{3}"), "prefix"),
    "m2m100": (re.compile(r"__([a-z]{2,3})__"), "prefix"),
    "mbart": (re.compile(r"([a-z]{2})_[A-Z]{2}"), "suffix"),
    "mbart50": (re.compile(r"([a-z]{2})_[A-Z]{2}"), "prefix"),
}
DEFAULT = ""
"""The key of the frame for a text whose language is not known."""


@dataclass(frozen=True)
class Frame:
    """The ids before and after a text's own."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]

    def to_json(self) -> dict[str, list[int]]:
        return {"prefix": list(self.prefix), "suffix": list(self.suffix)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Frame:
        return cls(tuple(map(int, data["prefix"])), tuple(map(int, data["suffix"])))


def _family(tokenizer_class: str) -> str:
    return re.sub(r"tokenizer(fast)?$", "", tokenizer_class.lower())


def names_languages(tokenizer_class: str) -> bool:
    """Whether the texts of this class of tokenizers are marked with their language."""
    return _family(tokenizer_class) in _SHAPES


def frames_of(
    family: str, vocabulary: Mapping[str, int], eos: str = "</s>", *, legacy: bool = False, default: str = "en"
) -> dict[str, Frame]:
    """Frames per language for a tokenizer class (`NllbTokenizer`, `M2M100Tokenizer`, `MBart…`); empty for others.

    `vocabulary` holds the language tokens. `legacy`: NLLB's first releases put the language last. `default` is the language
    of texts of which nothing is known. Languages without a two-letter code keep the encoder's own (`ace_Latn`).
    Raises CheckpointError when such a tokenizer has no language tokens, no `eos`, or not the default language.
    """
    family = _family(family)
    if family not in _SHAPES:
        return {}
    shape, place = _SHAPES[family]
    tokens = {token: match for token in vocabulary if (match := shape.fullmatch(token))}
    if not tokens or eos not in vocabulary:
        raise CheckpointError(f"the {family} tokenizer has no language tokens or no {eos}: its folder is not complete")
    names: dict[str, str] = {}
    if family == "nllb":
        names = {code: token for code, token in FLORES.items() if token in tokens}
        names |= {token: token for token in tokens if token not in names.values()}
    else:
        names = {match[1]: token for token, match in tokens.items()}
    if default not in names:
        raise CheckpointError(f"the encoder has no language {default!r}: it has {', '.join(sorted(names))}")
    last = place == "suffix" or legacy
    frames = {}
    for name, token in sorted(names.items()):
        code, end = vocabulary[token], vocabulary[eos]
        frames[name] = Frame((), (end, code)) if last else Frame((code,), (end,))
    return {DEFAULT: frames[default], **frames}
