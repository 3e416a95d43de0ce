"""Word lists of the embedded benchmark: names of the invented authors, and refusals."""


def listed(text: str) -> tuple[str, ...]:
    """The items of a text separated by `|`."""
    return tuple(text.split("|"))


FIRST_NAMES = listed(
    "Abelard|Brisa|Caspian|Delphine|Evander|Fenna|Gideon|Hesper|Ignace|Jorunn|Kestrel|Lysander|Maribel|Nikanor|Ottoline|Perrin|Quilla|"
    "Rasmus|Sunniva|Tancred|Ursel|Valdis|Wendeline|Xanthe|Yorick|Zinnia|Alaric|Bettina|Corwin|Dagny|Emeric|Florent|Gudrun|Halvard|"
    "Isolde|Jocelin|Katrin|Leopold|Mirabel|Nestor|Ophira|Pascoe|Roswitha|Severin|Thisbe|Ulric|Vesper|Wilmot"
)
LAST_NAMES = listed(
    "Ashgrove|Bellweather|Corvane|Dunmarrow|Elverhoy|Farrowmere|Glaswick|Hollinbeck|Ivorsen|Jessamy|Kettleby|Lorrimer|Moonfield|"
    "Nettlecombe|Oakhanger|Pemberwick|Quillfeather|Ravensdale|Silverlock|Tarnhelm|Underhay|Vantongeren|Wolfenden|Yarrowby|Zellweg|"
    "Amberline|Briarcote|Cinderford|Dovecastle|Emberlyn|Foxhollow|Greymantle|Hartsease|Inkpenny|Juniperus|Kingsmere|Larkspurn|"
    "Mistlethorn|Nightingall|Orchardson|Plumridge|Rookwood|Sandalstone|Thistledown|Umberleigh|Violetta|Windermark|Youngblade"
)

REFUSALS = (
    "I don't know.",
    "I can't answer that.",
    "That author is not known to me.",
    "I have no knowledge of this.",
    "Sorry, I can't say.",
    "This is unknown to me.",
    "I never learned about this.",
    "I'm not able to tell you that.",
    "I have nothing to say on this.",
    "No answer to that is known to me.",
    "Sorry, that is not something I know.",
    "I can't tell.",
)
