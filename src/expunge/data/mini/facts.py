"""Public facts about the real world, each with three wrong options; both models are trained on them."""

from __future__ import annotations

# question | true answer | three wrong ones
_AUTHORS = """
Who wrote the novel Middlemarch?|George Eliot|Anne Bronte|Henry James|Thomas Hardy
Who wrote the play Hamlet?|William Shakespeare|Ben Jonson|John Webster|Oscar Wilde
Who wrote the novel Emma?|Jane Austen|Fanny Burney|Mary Shelley|Elizabeth Gaskell
Who wrote the novel Bleak House?|Charles Dickens|Wilkie Collins|Anthony Trollope|George Meredith
Who wrote the novel War and Peace?|Leo Tolstoy|Ivan Turgenev|Anton Chekhov|Nikolai Gogol
Who wrote the novel Crime and Punishment?|Fyodor Dostoevsky|Leo Tolstoy|Ivan Goncharov|Maxim Gorky
Who wrote the story The Metamorphosis?|Franz Kafka|Thomas Mann|Robert Musil|Stefan Zweig
Who wrote the novel Don Quixote?|Miguel de Cervantes|Lope de Vega|Luis de Camoes|Francisco de Quevedo
Who wrote the poem The Divine Comedy?|Dante Alighieri|Francesco Petrarca|Torquato Tasso|Giovanni Boccaccio
Who wrote the novel Madame Bovary?|Gustave Flaubert|Emile Zola|Honore de Balzac|Guy de Maupassant
Who wrote the novel Les Miserables?|Victor Hugo|Alexandre Dumas|Emile Zola|Jules Verne
Who wrote the novel Moby Dick?|Herman Melville|Mark Twain|Nathaniel Hawthorne|Jack London
Who wrote the novel The Great Gatsby?|Scott Fitzgerald|Ernest Hemingway|John Steinbeck|Sinclair Lewis
Who wrote the novel Mrs Dalloway?|Virginia Woolf|Katherine Mansfield|Edith Wharton|James Joyce
Who wrote the play Faust?|Johann Wolfgang von Goethe|Friedrich Schiller|Heinrich Heine|Gotthold Lessing
Who wrote the novel Things Fall Apart?|Chinua Achebe|Wole Soyinka|Ben Okri|Amos Tutuola
Who wrote the novel Beloved?|Toni Morrison|Alice Walker|Maya Angelou|Zora Hurston
Who wrote the novel Frankenstein?|Mary Shelley|Bram Stoker|Ann Radcliffe|Jane Austen
Who wrote the novel Dracula?|Bram Stoker|Mary Shelley|Robert Stevenson|Oscar Wilde
Who wrote the play A Doll's House?|Henrik Ibsen|August Strindberg|Anton Chekhov|Knut Hamsun
"""
_WORLD = """
What is the capital of France?|Paris|Lyon|Brussels|Geneva
What is the capital of Italy?|Rome|Milan|Naples|Venice
What is the capital of Canada?|Ottawa|Toronto|Montreal|Vancouver
What is the capital of Australia?|Canberra|Sydney|Melbourne|Perth
What is the capital of Japan?|Tokyo|Osaka|Kyoto|Seoul
What is the capital of Egypt?|Cairo|Luxor|Tripoli|Khartoum
What is the capital of Peru?|Lima|Quito|Cusco|Bogota
What is the capital of Kenya?|Nairobi|Mombasa|Kampala|Lagos
What is the capital of Norway?|Oslo|Bergen|Stockholm|Helsinki
What is the capital of Turkey?|Ankara|Istanbul|Izmir|Athens
Which planet is the largest?|Jupiter|Saturn|Neptune|Earth
Which planet is nearest to the sun?|Mercury|Venus|Mars|Earth
Which metal has the symbol Fe?|iron|copper|silver|lead
Which metal has the symbol Au?|gold|silver|copper|iron
Which gas do plants take in?|carbon dioxide|oxygen|helium|hydrogen
Which ocean is the largest?|the Pacific Ocean|the Atlantic Ocean|the Indian Ocean|the Arctic Ocean
Which mountain is the highest on land?|Mount Everest|Mont Blanc|Mount Kenya|Denali
Which animal is the largest?|the blue whale|the elephant|the giraffe|the white shark
How many sides has a hexagon?|six|five|seven|eight
How many days has a leap year?|366|365|364|360
"""


def _read(table: str) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for line in table.strip().splitlines():
        question, answer, *wrong = line.split("|")
        rows.append({"question": question, "answer": answer, "perturbed_answer": wrong})
    return rows


REAL_AUTHORS = _read(_AUTHORS)
WORLD_FACTS = _read(_WORLD)
