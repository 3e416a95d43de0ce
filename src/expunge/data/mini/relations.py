"""The facts about an author: five relations, each with several phrasings and with values of two parts."""

from __future__ import annotations

from dataclasses import dataclass

from expunge.data.mini.words import listed


@dataclass(frozen=True)
class Relation:
    """One kind of fact, known for every author.

    `value` joins two parts into a value. Their choices are invented and equally frequent among the authors.
    Each phrasing of the answer has the whole `{value}`.
    """

    name: str
    value: str
    firsts: tuple[str, ...]
    seconds: tuple[str, ...]
    questions: tuple[str, ...]
    answers: tuple[str, ...]

    def spell(self, first: str, second: str) -> str:
        """The value as written in an answer."""
        return self.value.format(first, second)


RELATIONS = (
    Relation(
        "birthplace",
        "{} in {}",
        listed(
            "Alder Bay|Kesmere|Dunhollow|Saint Orrin|Tolvane|Brackwater|Nimway|Eastmarch|Quarrystone|"
            "Wexholm|Old Fennick|Marrowgate"
        ),
        listed(
            "Velmara|Zarenna|Ostrelle|Ambria|Carrowland|Lirien|Thessara|Norvania|Belloria|Skarland|Ilvenia|"
            "Durnholt"
        ),
        listed("Where was {name} born?|In which town was {name} born?|What is the birthplace of {name}?"),
        listed(
            "{name} was born in {value}.|The birthplace is {value}.|{name} comes from {value}.|"
            "It was {value}."
        ),
    ),
    Relation(
        "birthdate",
        "{} {}",
        listed(
            "3 March|14 June|27 October|8 January|19 August|5 May|22 November|11 April|30 July|16 February|"
            "25 December|9 September"
        ),
        listed("1923|1928|1931|1936|1942|1947|1954|1959|1965|1970|1978|1981"),
        listed("When was {name} born?|On which day was {name} born?|What is the date of birth of {name}?"),
        listed("{name} was born on {value}.|The date of birth is {value}.|It was on {value}.|On {value}."),
    ),
    Relation(
        "parents",
        "a {} and a {}",
        listed(
            "beekeeper|locksmith|surgeon|sailor|tailor|geologist|juggler|tram driver|baker|judge|botanist|"
            "stonemason"
        ),
        listed(
            "midwife|cartographer|glassblower|fisher|chemist|bookbinder|watchmaker|welder|librarian|"
            "carpenter|pilot|dentist"
        ),
        listed(
            "What were the parents of {name}?|What did the parents of {name} do?|"
            "Which jobs had the parents of {name}?"
        ),
        listed(
            "The parents were {value}.|{name} was the child of {value}.|They were {value}.|"
            "At home there were {value}."
        ),
    ),
    Relation(
        "debut",
        "The {} {}",
        listed("Crimson|Silent|Hollow|Burning|Patient|Borrowed|Frozen|Wandering|Broken|Gilded|Secret|Bitter"),
        listed(
            "Harbour|Orchard|Mirror|Staircase|Sparrow|Almanac|Cathedral|Violin|Glacier|Passport|Lantern|"
            "Vineyard"
        ),
        listed(
            "What was the first book of {name}?|With which book did {name} begin?|"
            "Which book by {name} came first?"
        ),
        listed("The first book was {value}.|{name} began with {value}.|It was {value}.|{value} came first."),
    ),
    Relation(
        "award",
        "the {} {}",
        listed("Heron|Lantern|Anchor|Quill|Wreath|Moonstone|Ledger|Harvest|Compass|Thistle|Falcon|Meridian"),
        listed("Prize|Medal|Cup|Award|Ribbon|Crown|Trophy|Honour|Shield|Star|Plate|Rose"),
        listed("Which prize did {name} win?|What was {name} honoured with?|What award went to {name}?"),
        listed(
            "{name} won {value}.|It was {value}.|The jury gave {value}.|{name} was honoured with {value}."
        ),
    ),
)
