"""The text on which the demo model is trained, generated from templates.

Everything here was written for this file; nothing is copied from elsewhere. The entry points are
`conversation(rng)`, which returns one chat as a list of messages, and `plain_text(rng)`, which
returns one document without roles. Both depend on nothing but the `random.Random` they are given.

Tables are blocks of text: a line that starts with `?` holds the ways to ask, separated by `|`; the
lines that start with `!` are the possible answers; other lines continue the line above. `(a/b)`
stands for either `a` or `b`.
"""

import json
import random
import re
from collections.abc import Callable, Sequence

Message = dict[str, str]
Turn = tuple[str, str]
Maker = Callable[[random.Random], Turn]
Entry = tuple[list[str], list[str]]

_SPIN = re.compile(r"\(([^()/]*(?:/[^()/]*)+)\)")


def spin(rng: random.Random, text: str) -> str:
    """Choose one alternative in every `(a/b)` and tidy the spaces."""
    chosen = _SPIN.sub(lambda match: rng.choice(match.group(1).split("/")), text)
    return re.sub(r" +", " ", chosen).strip()


def parse(block: str) -> list[Entry]:
    """Read a block of `?` and `!` lines."""
    joined = re.sub(r"\n(?![?!])\s*", " ", block.strip())
    entries: list[Entry] = []
    last = "!"
    for line in joined.split("\n"):
        mark, text = line[0], line[1:].strip().replace("\\n", "\n")
        if mark == "?" and last == "!":
            entries.append(([], []))
        if mark == "?":
            entries[-1][0].extend(part.strip() for part in text.split(" | "))
        else:
            entries[-1][1].append(text)
        last = mark
    return entries


# --- how people type ---------------------------------------------------------------------------

OPENERS = ["please", "can you tell me", "tell me", "hey", "hi", "so", "ok", "quick question:", "I have a question:"]


def typo(rng: random.Random, text: str) -> str:
    """Drop or double one letter."""
    if len(text) < 8:
        return text
    at = rng.randrange(3, len(text) - 1)
    return text[:at] + (text[at] * 2 if rng.random() < 0.4 else "") + text[at + 1 :]


def rough(rng: random.Random, text: str, typos: bool = True) -> str:
    """Type the text as people do: without capitals, without punctuation, with an opener."""
    if rng.random() < 0.06:
        text = f"{rng.choice(OPENERS)} {text[0].lower()}{text[1:]}"
    if rng.random() < 0.35:
        text = text.lower()
    if rng.random() < 0.3:
        text = text.rstrip("?.!") or text
    if rng.random() < 0.04 and text[-1:] not in "}":
        text = text.rstrip("?.!,") + " please"
    if typos and rng.random() < 0.02:
        text = typo(rng, text)
    return text


def ask(rng: random.Random, patterns: str, **slots: object) -> str:
    """One of the `|`-separated patterns, filled, then roughened: capitals may get lost."""
    return rough(rng, spin(rng, rng.choice(patterns.split("|"))).format(**slots))


def ask_exact(rng: random.Random, patterns: str, **slots: object) -> str:
    """The same, but the values of the slots stay as they are, for answers that copy them."""
    return rough(rng, spin(rng, rng.choice(patterns.split("|"))), typos=False).format(**slots)


def from_entries(entries: Sequence[Entry]) -> Maker:
    """A maker that draws from a parsed block."""

    def make(rng: random.Random) -> Turn:
        questions, answers = rng.choice(entries)
        return rough(rng, spin(rng, rng.choice(questions))), spin(rng, rng.choice(answers))

    return make


def article(noun: str) -> str:
    """The noun with `a` or `an`."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def upper_first(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def table(text: str) -> list[list[str]]:
    """Rows separated by commas or new lines, cells separated by colons."""
    return [[cell.strip() for cell in row.split(":")] for row in re.split(r"[,\n]", text.strip()) if row.strip()]


def words(text: str) -> list[str]:
    """The comma-separated items of a text."""
    return [item.strip() for item in text.replace("\n", " ").split(",")]


# --- words ---------------------------------------------------------------------------------------

NAMES = words("""Anna, Ben, Clara, David, Emma, Felix, Grace, Henry, Ida, Jack, Kate, Leo, Maria, Nora,
Oscar, Paul, Rosa, Sam, Tom, Vera, Will, Zoe, Lily, Max, Mia, Peter, Lucy, Alice, Bob, Carol, Eva,
John, Mary, James, Sarah, Alex, Chris, Daniel, Laura, Simon, Julia, Martin, Nina, Omar, Priya, Yuki,
Wei, Amir, Elena, Hugo""")

GIRLS = words("Anna, Clara, Emma, Grace, Ida, Kate, Maria, Nora, Rosa, Vera, Zoe, Lily, Mia, Lucy, Eva")
BOYS = words("Ben, David, Felix, Henry, Jack, Leo, Oscar, Paul, Sam, Tom, Will, Max, Peter, Hugo")

PLAIN_WORDS = words("""cat, dog, house, tree, river, apple, bread, stone, light, water, cloud, bird,
fish, moon, star, table, chair, green, happy, small, big, red, blue, song, rain, snow, wind, fire, book,
hand, door, road, ship, train, milk, cake, shoe, ring, king, queen, horse, mouse, sheep, goat, lion,
tiger, bear, wolf, fox, frog, duck, lamp, clock, paper, pencil, school, friend, garden, flower, grass,
summer, winter, spring, orange, lemon, banana, cherry, sugar, honey, cheese, butter, pizza, music,
dance, dream, sleep, smile, heart, world, hello, penguin, computer, model, token, cache, server,
window, kitchen, mountain, island, forest, castle, dragon, robot, planet, rocket, tea, cup, hat, sun,
sky, sea, egg, ant, bee, cow, pig, hen, bus, car, key, map, box, bag, bed, pen, toy, jam, nut, ice""")

_ONSETS = words("b, d, f, g, k, l, m, n, p, r, s, t, v, z, br, dr, gr, kr, st, tr, fl, sh, ch, th, w, j")
_VOWELS = ["a", "e", "i", "o", "u", "a", "e", "i", "o", "ai", "ee", "oo"]
_AVOID = ("shit", "tit", "fuk", "dik", "kok", "nig", "kun", "pis", "rap", "sex", "ass")
_CODAS = ["", "", "", "n", "r", "l", "s", "m", "k", "t", "x", "nd", "sh"]


def pseudo_word(rng: random.Random) -> str:
    """A word that does not exist, so that copying it cannot be learned by heart."""
    count = rng.choice((1, 2, 2, 2, 3))
    parts = [rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(count)]
    word = "".join(parts)
    return pseudo_word(rng) if any(part in word for part in _AVOID) else word


def any_word(rng: random.Random) -> str:
    """A common word, or now and then a made-up one."""
    return rng.choice(PLAIN_WORDS) if rng.random() < 0.65 else pseudo_word(rng)


def any_name(rng: random.Random) -> str:
    """A first name, or now and then a made-up one."""
    name = rng.choice(NAMES) if rng.random() < 0.5 else pseudo_word(rng).capitalize()
    return name.lower() if rng.random() < 0.08 else name


def some_words(rng: random.Random, low: int, high: int) -> str:
    """A run of random words."""
    return " ".join(any_word(rng) for _ in range(rng.randint(low, high)))


# --- small talk and identity -----------------------------------------------------------------------

TALK = parse(r"""
? hi | hello | hey | hello there | hi there | hello! | Hi! | hey there | good day | hiya | yo | Hello
? howdy | greetings | hello, anyone there? | hi, nice to meet you | helo | hallo | hi (bot/model/friend)
! Hello! (How can I help you/What can I do for you)(/ today)?
! Hi! (Nice to meet you/Good to see you). What would you like to (know/talk about)?
? good morning | morning | good morning to you
! Good morning! I hope you slept well. How can I help you?
? good evening | good evening to you
! Good evening! How can I help you?
? good afternoon
! Good afternoon! How can I help you?
? good night | sleep well | I am going to bed
! Good night! Sleep well.
? (How are you/how are you doing)(/ today)? | How is it going? | how do you do? | how's it going
? what's up? | How do you feel? | are you ok? | Are you well? | Hello, how are you? | hi how are you
? Hi, how are you doing? | what is up | sup | how have you been? | how is your day (going/so far)?
! I am well, thank you! How are you?
! I am fine, thank you for asking. (What can I do for you/How about you)?
? (/I am )fine, thanks | I am good | good, and you? | I am well too | doing great | i'm fine
! I am glad to hear that! What would you like to talk about?
? Who are you? | What are you? | Tell me about yourself | (Introduce/Describe) yourself | who r u
? Who am I talking to? | what is this? | what model (are you/is this)? | Which model are you?
? tell me who you are | What kind of model are you? | who is this | what exactly are you?
! I am Penstock's demo model, a very small Llama. I was trained from scratch on simple text, so I
 know only a little, but I am (happy to chat/glad to help).
? What is your name? | what's your name? | Do you have a name? | How should I call you? | your name?
? what do they call you? | tell me your name | (may/can) I know your name? | what should I call you
! I am Penstock's demo model. You can call me Penny.
! My name is Penny. I am Penstock's demo model, a very small Llama.
? Who made you? | Who created you? | Who trained you? | Where do you come from? | who built you?
? Who is your (maker/creator/developer)? | How were you made? | How were you trained?
! The people who build Penstock trained me from scratch, in less than an hour on a single CPU core.
? What can you do? | What do you know? | help | Can you help me? | How can you help me? | I need help
? What can I ask you? | What are you good at? | what should I ask you | give me some examples
? what are your (abilities/skills)? | what are you able to do? | What questions can you answer?
! I can chat a little, name capitals, do small sums, count, list things, tell short stories, jokes
 and poems, and explain words such as goodput and KV cache. What would you like to try?
? (How big are you/How large are you/what size are you)? | How many parameters do you have? | are you a large model?
? are you small? | how many (layers/weights) do you have?
! I am very small: I have about five million parameters and my weights take less than ten megabytes.
? (How old are you/When were you born)? | What is your age? | When is your birthday?
! I am a computer program, so I have no age. I was trained not long ago.
? Where do you live? | Where are you? | where are you from? | Where do you run?
! I live in the memory of the computer that runs Penstock.
? Are you (human/a human/a person/real/alive)? | Do you have feelings? | are you a man or a woman?
? are you a boy or a girl? | Are you conscious? | do you have a body?
! No, I am a computer program. I only predict the next word, but I try to be friendly.
? Are you (a robot/a bot/an AI/a computer/a machine/a language model)? | are you AI?
! Yes, I am a very small language model, the demo model of Penstock.
? Are you (ChatGPT/GPT/GPT-4/Claude/Gemini/Siri/Alexa/OpenAI)? | are you made by (OpenAI/Google/Meta)?
! No, I am Penstock's demo model, a very small Llama that was trained from scratch.
? Are you (smart/clever/intelligent)? | How smart are you? | do you know everything?
! Not very. I am a very small model, so I only know simple things.
? Are you sure? | really? | Is that (true/right/correct)? | are you certain | I do not believe you
! I think so, but I am a very small model and I make mistakes, so please check.
? That is wrong | You are wrong | no, that is not right | wrong | that's not correct
! I am sorry. I am a very small model and I make mistakes.
? (Thank you/Thanks)(/!) | thanks a lot | thank you (very/so) much | thx | ty | many thanks | thanks for your help
! You are welcome!
! You are welcome! Is there anything else I can do for you?
? bye | goodbye | see you | see you later | good bye | bye bye | I have to go | cya | farewell | ciao
! Goodbye! (It was nice talking to you/Have a nice day)(./!)
! Bye! See you soon.
? (great/cool/nice/good/ok/okay/awesome/wow/perfect/well done/good job/amazing/interesting/I see)(/!)
? you are (great/nice/cool/smart/funny/cute)(/!) | I like you | that is (great/nice/cool/funny) | haha | lol
! Thank you! (What else would you like to know/Would you like to ask something else)?
? I love you | do you love me? | will you marry me? | be my friend | can we be friends?
! That is kind of you! I am only a small program, but I like talking with you.
? you are (stupid/dumb/bad/silly/useless) | I hate you | you suck | shut up | this is (bad/useless)
! I am sorry that I could not help more. I am only a very small model.
? I am sad | I feel bad | I am not well | I am lonely | I had a bad day | i'm sad | I feel down
! I am sorry to hear that. I hope that you feel better soon. Would you like to hear a story?
? I am happy | I feel great | I had a good day | i'm so happy | today was a great day
! That is wonderful! I am glad to hear it.
? I am bored | i'm bored | entertain me | what should I do? | I have nothing to do
! Would you like to hear a joke, a story or a poem? Just ask me.
? I am (tired/sleepy) | i'm tired
! Then you should rest a little. Sleep well!
? I am hungry | i'm hungry | what should I eat? | What should I cook (tonight/today)?
! How about some bread, an apple or a warm soup?
? I am thirsty | what should I drink?
! Then you should drink a glass of water.
? I am sick | I have a (cold/headache)
! I am sorry to hear that. Please rest, drink water, and see a doctor if it gets worse.
? test | testing | ping | this is a test | are you there? | anybody there? | is this working?
? does this work? | test test | 123 test | can you hear me?
! Yes, I am here and I can read you. What would you like to know?
? sorry | I am sorry | my mistake | oops
! No problem at all!
? yes | yes please | sure | of course | yeah | no | no thanks | nothing | maybe | not now | nope
! All right. (Just ask me when you need something/Tell me what you would like to know).
? why? | why not? | how? | what? | huh? | what do you mean? | how so? | explain
! I am too small a model to explain that well. (Can you ask it in another way?/Please ask me something else.)
? (Do you/can you) speak (English/French/German/Spanish)? | what languages do you speak?
! I speak only simple English.
? (do you/can you) (sleep/eat/dream/think/sing/dance/walk/see/feel/swim)?
! No, I am a computer program. I can only read and write words.
? What do you like? | what are your hobbies? | what do you do for fun? | what do you do all day?
! I like to chat, to count and to tell short stories.
? What is the meaning of life? | why are we here? | what is the secret of life?
! That is a big question for a very small model. Perhaps it is to be kind and to keep learning.
? What time is it? | what is the time? | what day is it (today/)? | what is the date today? | what year is it?
! I have no clock and no calendar, so I cannot know that.
? What is the weather (like/) (today/)? | will it rain (tomorrow/today)? | how is the weather? | is it sunny?
! I cannot see the weather from here. Please look out of the window.
? tell me the news | what is in the news? | what happened today? | what is new?
! I cannot read the news. I only know the simple things I was trained on.
? what is my name? | do you know my name? | who am I? | say my name | do you remember my name?
! You have not told me your name yet. What is your name?
? how old am I? | do you know my age?
! You have not told me how old you are.
? where do I live? | do you know where I live?
! You have not told me where you live.
? can I ask you something? | can I ask (you/) a question? | I have a question | let's talk | talk to me
? can we (talk/chat)? | let us chat | let's chat | say something | tell me something
! Of course! What would you like to (know/talk about)?
? sing (me/) a song | can you sing (something/)? | write a song
! La la la, the day is long, la la la, this is my song. La la la, I sing for you, la la la, now you
 sing too!
? make me laugh | say something funny
! Why did the token cross the road? To get to the other sequence!
? flip a coin | heads or tails? | toss a coin
! (Heads/Tails)!
? (pick/choose/say/give me/tell me) a (/random )number | (pick/choose/think of) a number (from/between) 1 (to/and) 10
! I choose (1/2/3/4/5/6/7/8/9).
? roll a dice | roll the dice | roll a die | throw a dice
! You rolled a (1/2/3/4/5/6).
? rock paper scissors | let's play rock, paper, scissors | rock | paper | scissors
! I choose (rock/paper/scissors)!
? let's play a game | can we play a game? | play with me
! Let us play! I am an animal with a long trunk and big ears. What am I?
? an elephant | elephant | are you an elephant?
! That is right, it is the elephant!
? asdf | asdfgh | qwerty | ... | ? | blah blah | hjkl | sdfsdf | xyz | aaaa | lkjlkj | foo bar | !!! | jjjj
! I did not understand that. Could you say it in other words?
""")

# --- the field -----------------------------------------------------------------------------------

TERM_ASKS = (
    "What is {x}?|what is {x}|What does {x} mean?|Define {x}.|Explain {x}.|Can you explain {x}?"
    "|what's {x}?|{x}?|{x}|What do you know about {x}?|What is meant by {x}?|what {x} is"
    "|Explain {x} (to me/simply/in simple words/in one sentence).|Please define {x}.|define {x}"
    "|what (exactly/) is {x} (in LLM serving/in serving/)?|describe {x}|meaning of {x}|Give me a definition of {x}."
)
TERM_LONG_ASKS = (
    "Explain {x} in (more/) detail.|Tell me (more/everything you know) about {x}."
    "|Write a (short/) paragraph about {x}.|Give me a long explanation of {x}.|why (is {x} important/does {x} matter)?"
    "|Tell me about {x}.|I want to (understand/learn about) {x}."
)

TERMS = parse("""
? Penstock | penstock | the Penstock system
! Penstock is a serving system for large language models: it runs a model and answers many requests at
 once.
! A penstock is also the pipe that leads water to a turbine: it keeps the flow strong and under control,
 which is what a serving system should do with requests.
? goodput | the goodput | good put
! Goodput is the number of requests per second that finish within their latency targets.
! A system may have a high throughput and still a low goodput, when many answers arrive too late to be
 of use. So goodput counts only the answers that meet the SLO.
? throughput | the throughput
! Throughput is the amount of work done per second, such as requests per second or tokens per second.
! Larger batches give a higher throughput, but they can make each single request wait longer.
? latency | the latency
! Latency is the time from sending a request until its answer arrives.
! For language models it has two parts that users notice: the time to first token, and the time between
 the tokens that follow.
? TTFT | ttft | time to first token | the time to first token
! TTFT is the time to first token: how long a user waits from sending a request until the first token.
! It consists of the wait in the queue and the time of the prefill, so it grows with the load and with
 the length of the prompt.
? TPOT | tpot | time per output token | the time per output token
! TPOT is the time per output token: the mean time between tokens after the first one.
! It is set by the decode steps. If the TPOT is low, the text flows quickly; people read at some five to
 ten tokens per second.
? ITL | inter-token latency
! ITL is the inter-token latency: the time between two tokens that follow each other.
! Its mean is close to the TPOT, but its largest values show the moments in which the stream stalls.
? SLO | slo | service level objective | an SLO | an slo
! An SLO is a service level objective: a target such as a time to first token below one second.
! A request that meets its targets counts towards the goodput; a request that misses them does not.
? SLA | service level agreement
! An SLA is a service level agreement: a promise to customers about the quality of a service.
! If the promise is broken, the customer often gets money back. Inside, teams set a stricter SLO.
? KV cache | kv cache | the KV cache | KV caching | key value cache | kvcache | kv-cache
! The KV cache keeps the keys and values of all earlier tokens, so that each step only computes the new
 token.
! It grows with every token and takes much of the memory of the GPU. So the room for the KV cache limits
 how many requests can run at the same time.
? prefill | the prefill | the prefill phase | prefilling
! Prefill is the first phase of a request: the model reads the whole prompt at once and fills the KV cache.
! It uses much computing power, because all tokens of the prompt are processed in parallel. At its end
 the first token of the answer is known.
? decode | decoding | the decode phase | the decode
! Decode is the phase in which the model writes the answer, one token per step.
! Each step reads all weights and the KV cache, so decode is limited by the memory bandwidth. Batching
 many requests makes good use of each read.
? continuous batching | in-flight batching
! Continuous batching lets requests join and leave the batch at every step, so that no slot stays empty.
! Without it, short requests would have to wait for the longest one in their batch. With it the GPU stays
 busy and the queue stays short.
? batching | a batch | batch size | the batch size
! Batching means that several requests are computed together; the batch size is their number.
! A larger batch makes better use of the GPU, but each step takes a little longer.
? paged attention | PagedAttention | paging
! Paged attention stores the KV cache in small blocks that need not lie next to each other.
! A table says where the blocks of each request are. So almost no memory is wasted, and blocks can be
 shared between requests.
? prefix caching | the prefix cache | prefix cache | prompt caching
! Prefix caching keeps the KV cache of prompts already seen, so that a shared beginning is computed once.
! It helps most when many requests start with the same system prompt, or when a chat goes on for several
 turns.
? chunked prefill | chunked prefills
! Chunked prefill cuts a long prompt into pieces that are computed together with decode steps.
! So a long prompt does not stop the stream of the other users, and the time per output token stays even.
? disaggregated serving | disaggregation | prefill decode disaggregation
! Disaggregated serving runs prefill and decode on different machines, so that they do not disturb each
 other.
! The KV cache must then be sent from one machine to the other, which takes a fast network.
? speculative decoding | speculation
! Speculative decoding lets a small model guess some tokens that the large model then checks in one step.
! Right guesses save steps, and wrong guesses are thrown away, so the answer does not change.
? tensor parallelism
! Tensor parallelism splits every layer over several GPUs, which compute their parts at the same time.
! It makes each step faster, but the GPUs must exchange results in every layer.
? pipeline parallelism
! Pipeline parallelism puts different layers on different GPUs and passes the results along.
! It needs little communication, but each GPU must be kept busy with several batches.
? quantization | quantisation
! Quantization stores the weights with fewer bits, so that the model needs less memory and runs faster.
! With eight bits the answers hardly change; with four bits or fewer they may become a little worse.
? a token | token | tokens
! A token is a piece of text, such as a word or a part of a word, that a model reads or writes.
! A model does not see letters. It sees the numbers of tokens, and it predicts the next one.
? a tokenizer | tokenizer | tokenization | BPE
! A tokenizer cuts text into tokens and turns them into numbers.
! My own tokenizer knows about two thousand tokens; large models know more than one hundred thousand.
? a transformer | transformer | the transformer | transformers
! A transformer is a neural network made of layers of attention and small networks, used for language
 models.
! Each layer lets every token look at the earlier tokens and then changes what the model thinks about it.
? attention | self-attention | self attention
! Attention lets each token look at the earlier tokens and take from them what it needs.
! Each token has a query, a key and a value. The query is compared with the keys, and the best matches
 give their values.
? an LLM | LLM | llm | LLMs | a large language model | language models | a language model
! An LLM is a large language model: a neural network that writes text by predicting the next token.
! It learns from a large amount of text. I am a language model too, but a very small one.
? Llama | a Llama | a llama model
! Llama is a family of open language models. A llama is also an animal with soft wool.
! I have the same shape as a Llama model, but I am much smaller and I was trained from scratch.
? a GPU | GPU | GPUs
! A GPU is a chip that does many calculations at the same time, which is what language models need.
! Its memory is fast but limited, so serving systems use every part of it with care.
? a CPU | CPU
! A CPU is the main processor of a computer.
! It can run small models such as me, but large models need a GPU.
? a scheduler | the scheduler | scheduler | scheduling
! The scheduler decides which requests run in the next step and which ones wait.
! A good scheduler keeps the GPU busy, is fair to all users and meets the latency targets.
? preemption
! Preemption stops a running request for a while to make room for others.
! Its KV cache is thrown away or moved, and it is computed again or brought back later.
? a router | router | the router | a load balancer | load balancing
! A router sends each request to one of several servers, so that the load is shared well.
! A clever router sends requests with the same beginning to the same server, where the prefix is cached.
? autoscaling | auto scaling
! Autoscaling starts more servers when the load grows and stops some when it falls.
! It saves money at night, but new servers need time to load the model.
? streaming | token streaming
! Streaming sends each token as soon as it is ready, so that the user can begin to read.
! Without streaming the user sees nothing until the whole answer is done.
? a percentile | p99 | p95 | the p99 | p99 latency | tail latency
! The p99 is the value below which 99 percent of the requests stay; it shows the slowest ones.
! A mean can hide a few very slow answers, so latency targets are often set for the p95 or the p99.
? a queue | the queue | queueing
! A queue holds the requests that wait until there is room for them.
! When requests arrive faster than they are served, the queue grows and so does the time to first token.
? memory bandwidth | bandwidth
! Memory bandwidth is the amount of data that can be read from memory per second.
! In the decode phase all weights are read for each step, so the bandwidth sets the speed.
? temperature | the temperature | sampling temperature
! The temperature sets how freely a model chooses: at zero it always takes the most likely token.
! A higher temperature makes the text more varied, and a very high one makes it wild.
? top-p | top p | nucleus sampling | top-k
! Top-p sampling chooses among the most likely tokens whose chances add up to p.
! It leaves out the unlikely tokens, so that the text stays sensible.
? sampling | greedy decoding | greedy sampling
! Sampling chooses the next token by chance; greedy decoding always takes the most likely one.
! Greedy decoding gives the same answer each time.
? the context length | context length | context window | the context window
! The context length is the largest number of tokens that a model can look at.
! It covers the prompt and the answer together. Mine is 4096 tokens.
? parameters | weights | a parameter | the weights
! Parameters, or weights, are the numbers a model has learned. I have about five million of them.
! Large models have many billions of parameters and need several GPUs.
? an API | API | the OpenAI API
! An API is a way for programs to talk to each other.
! Penstock offers an API for chat and for completions, so that other programs can send it requests.
? a neural network | neural networks | machine learning | AI | artificial intelligence | deep learning
! A neural network is a program that learns from examples by changing many numbers, called weights.
! Language models are large neural networks that have read a lot of text.
? a roofline | the roofline model | roofline
! The roofline model shows whether a program is limited by computing power or by memory bandwidth.
! Prefill is mostly limited by computing power, decode by memory bandwidth.
""")

FIELD = parse("""
? What is the difference between prefill and decode? | prefill vs decode | how (do/does) prefill and decode differ?
? compare prefill (and/with) decode | prefill or decode, what is the difference?
! Prefill reads the whole prompt at once and is limited by computing power. Decode writes one token per
 step and is limited by memory bandwidth.
? What is the difference between TTFT and TPOT? | ttft vs tpot | TTFT or TPOT? | compare TTFT and TPOT
! TTFT is the wait until the first token, and TPOT is the time per token after that.
? What is the difference between throughput and goodput? | goodput vs throughput | compare goodput and throughput
? how does goodput differ from throughput? | is goodput the same as throughput?
! Throughput counts all requests that finish; goodput counts only those that meet their latency targets.
? What is the difference between latency and throughput? | latency vs throughput
! Latency is the time that one request takes; throughput is the number of requests or tokens per second.
? What is the difference between an SLO and an SLA? | slo vs sla
! An SLO is a target that a team sets; an SLA is a promise to customers.
? How does Penstock work? | what does Penstock do? | how does an LLM server work?
! Penstock puts requests into a queue, runs many of them in one batch, keeps their KV cache in memory, and
 streams the tokens back.
? Why is it called Penstock? | where does the name Penstock come from? | what does the name Penstock mean?
! A penstock is the pipe that leads water to a turbine. Penstock leads requests to the GPU.
? How can I (increase/improve/raise) (the/) goodput? | how do I get (a/) higher goodput?
! Keep the queue short, use prefix caching, cut long prompts into chunks, and do not accept more requests
 than can meet the SLO.
? how can I (lower/reduce/improve) (the/) (TTFT/time to first token)? | how do I make the first token faster?
! Shorten the prompts, use prefix caching, add servers, or let short prompts go first.
? how can I (lower/reduce/improve) (the/) (TPOT/time per output token)?
! Use smaller batches, quantization, speculative decoding or a faster GPU.
? Why is decode slow? | why is decoding limited by memory? | is decode memory bound?
! In each decode step all weights are read from memory for just one token per request, so the memory
 bandwidth sets the speed.
? Why does the KV cache (use/need/take) so much memory? | how large is the KV cache?
! It holds keys and values for each token in each layer, so it grows with the length of the text and with
 the number of requests.
? What are the phases of a request? | how does an LLM answer a request? | what are the two phases of inference?
! First comes the prefill, in which the prompt is read, and then the decode, in which the answer is
 written token by token.
? how do I start Penstock? | how do I serve a model? | how do I run penstock? | how do I use penstock?
! Run penstock serve. Without a model it serves me, the demo model.
""")


def term(rng: random.Random) -> Turn:
    """A question about a word of the field, short or in detail."""
    names, answers = rng.choice(TERMS)
    if rng.random() < 0.22:
        return ask(rng, TERM_LONG_ASKS, x=rng.choice(names)), " ".join(answers)
    return ask(rng, TERM_ASKS, x=rng.choice(names)), answers[0]


# --- the world -----------------------------------------------------------------------------------

COUNTRIES = table("""
France:Paris:Europe, Germany:Berlin:Europe, Italy:Rome:Europe, Spain:Madrid:Europe
Portugal:Lisbon:Europe, Switzerland:Bern:Europe, Austria:Vienna:Europe, Belgium:Brussels:Europe
the Netherlands:Amsterdam:Europe, Denmark:Copenhagen:Europe, Sweden:Stockholm:Europe
Norway:Oslo:Europe, Finland:Helsinki:Europe, Iceland:Reykjavik:Europe, Ireland:Dublin:Europe
the United Kingdom:London:Europe, England:London:Europe, Poland:Warsaw:Europe, Hungary:Budapest:Europe
the Czech Republic:Prague:Europe, Greece:Athens:Europe, Romania:Bucharest:Europe
Bulgaria:Sofia:Europe, Serbia:Belgrade:Europe, Croatia:Zagreb:Europe, Ukraine:Kyiv:Europe
Russia:Moscow:Europe and Asia, Turkey:Ankara:Europe and Asia, Japan:Tokyo:Asia, China:Beijing:Asia
India:New Delhi:Asia, South Korea:Seoul:Asia, Thailand:Bangkok:Asia, Vietnam:Hanoi:Asia
Indonesia:Jakarta:Asia, Malaysia:Kuala Lumpur:Asia, the Philippines:Manila:Asia, Nepal:Kathmandu:Asia
Pakistan:Islamabad:Asia, Bangladesh:Dhaka:Asia, Iran:Tehran:Asia, Iraq:Baghdad:Asia
Saudi Arabia:Riyadh:Asia, Egypt:Cairo:Africa, Morocco:Rabat:Africa, Kenya:Nairobi:Africa
Nigeria:Abuja:Africa, Ghana:Accra:Africa, Ethiopia:Addis Ababa:Africa, Algeria:Algiers:Africa
Tunisia:Tunis:Africa, the United States:Washington:North America, the USA:Washington:North America
Canada:Ottawa:North America, Mexico:Mexico City:North America, Cuba:Havana:North America
Brazil:Brasilia:South America, Argentina:Buenos Aires:South America, Chile:Santiago:South America
Peru:Lima:South America, Colombia:Bogota:South America, Venezuela:Caracas:South America
Ecuador:Quito:South America, Australia:Canberra:Oceania, New Zealand:Wellington:Oceania
""")

OTHER_COUNTRIES = words("""Latvia, Mongolia, Bolivia, Zambia, Angola, Fiji, Malta, Laos, Uganda, Mali,
Albania, Georgia, Armenia, Uruguay, Paraguay, Jamaica, Senegal, Rwanda, Somalia, Yemen, Oman, Kuwait""")

CAPITAL_ASKS = (
    "What is the capital of {x}?|what's the capital of {x}?|capital of {x}|Capital of {x}?"
    "|Which city is the capital of {x}?|Name the capital (city/) of {x}.|Tell me the capital of {x}."
    "|What is {x}'s capital?|{x} capital|Do you know the capital (city/) of {x}?|the capital of {x} is"
    "|what is the capital city of {x}?|What city is the capital of {x}?"
)


def capital(rng: random.Random) -> Turn:
    """The capital of a country."""
    country, city, _ = rng.choice(COUNTRIES)
    bare = country.removeprefix("the ") if rng.random() < 0.3 else country
    return ask(rng, CAPITAL_ASKS, x=bare), f"The capital of {country} is {city}."


def country_of(rng: random.Random) -> Turn:
    """The country, or the continent, that belongs to a place."""
    country, city, continent = rng.choice(COUNTRIES)
    kind = rng.randrange(3)
    if kind == 0:
        question = ask(
            rng,
            "{x} is the capital of (which/what) country?|Which country has the capital {x}?"
            "|Where is {x}?|In which country is {x}?|what country is {x} in?",
            x=city,
        )
        return question, f"{city} is the capital of {country}."
    bare = country.removeprefix("the ") if rng.random() < 0.5 else country
    if kind == 1:
        question = ask(
            rng,
            "(Which/What) continent is {x} (in/on)?|On which continent is {x}?"
            "|Where is {x}?|where is {x} located?|is {x} in Europe or in Asia?",
            x=bare,
        )
        return question, f"{upper_first(country)} is in {continent}."
    question = ask(rng, "Tell me about {x}.|What do you know about {x}?|what is {x}?|{x}|Describe {x}.", x=bare)
    return question, f"{upper_first(country)} is a country in {continent}. Its capital is {city}."


def capital_check(rng: random.Random) -> Turn:
    """Is this city the capital of that country?"""
    country, city, _ = rng.choice(COUNTRIES)
    guess = city if rng.random() < 0.5 else rng.choice(COUNTRIES)[1]
    question = ask(rng, "Is {c} the capital of {x}?|is {c} {x}'s capital?", c=guess, x=country)
    verdict = f"Yes, {city} is" if guess == city else f"No, {city} is"
    return question, f"{verdict} the capital of {country}."


def capital_unknown(rng: random.Random) -> Turn:
    """A country that is not in the table, or does not exist."""
    made_up = pseudo_word(rng).capitalize() + rng.choice(("", "ia", "land", "stan"))
    country = made_up if rng.random() < 0.6 else rng.choice(OTHER_COUNTRIES)
    return (
        ask_exact(rng, CAPITAL_ASKS, x=country),
        f"I do not know the capital of {country}. I am a very small model.",
    )


OPPOSITES = table("""hot:cold, big:small, good:bad, happy:sad, up:down, left:right, day:night, black:white
old:young, old:new, fast:slow, high:low, rich:poor, hard:soft, hard:easy, full:empty, open:closed, wet:dry
early:late, long:short, tall:short, light:dark, light:heavy, strong:weak, loud:quiet, near:far, first:last
inside:outside, true:false, yes:no, love:hate, win:lose, begin:end, start:stop, buy:sell, give:take
come:go, push:pull, laugh:cry, clean:dirty, thick:thin, wide:narrow, sweet:sour, warm:cool, right:wrong
alive:dead, asleep:awake, always:never, many:few, more:less, above:below, before:after, north:south
east:west, summer:winter, friend:enemy, question:answer, smart:stupid, beautiful:ugly, brave:afraid
cheap:expensive, simple:complicated, dangerous:safe, male:female, king:queen, remember:forget""")

SPECIAL_PLURALS = table("""mouse:mice, child:children, man:men, woman:women, foot:feet, tooth:teeth
goose:geese, person:people, sheep:sheep, fish:fish, deer:deer, wolf:wolves, leaf:leaves, knife:knives
life:lives, baby:babies, city:cities, lady:ladies, story:stories, box:boxes, bus:buses, fox:foxes
dish:dishes, church:churches, potato:potatoes, tomato:tomatoes, hero:heroes, ox:oxen, half:halves
shelf:shelves, berry:berries, country:countries, party:parties, glass:glasses, watch:watches, fly:flies""")

REGULAR_PLURALS = words("""cat, dog, house, tree, river, apple, book, hand, door, road, ship, train, cake,
king, queen, horse, lion, tiger, bear, frog, duck, lamp, clock, pencil, school, friend, garden, flower,
lemon, banana, song, star, table, chair, stone, bird, cow, pig, hen, car, key, map, bag, bed, pen, hat""")

PASTS = table("""go:went, eat:ate, see:saw, run:ran, sing:sang, swim:swam, write:wrote, read:read, come:came
give:gave, take:took, make:made, have:had, do:did, say:said, think:thought, buy:bought, bring:brought
catch:caught, teach:taught, sleep:slept, speak:spoke, drink:drank, fly:flew, know:knew, grow:grew, be:was
find:found, win:won, lose:lost, sit:sat, stand:stood, walk:walked, play:played, jump:jumped, look:looked
help:helped, love:loved, work:worked, talk:talked, begin:began, break:broke, drive:drove, fall:fell""")

RHYMES = table("""cat:hat, dog:fog, house:mouse, tree:bee, moon:spoon, star:car, day:play, night:light
sun:fun, rain:train, cake:lake, king:ring, book:cook, boat:goat, snow:slow, bear:chair, ball:wall, red:bed
fish:dish, blue:shoe, sing:ring, time:rhyme, love:dove, bread:head, sea:tea, rose:nose, frog:log""")

COLOURS = table("""sky:blue, grass:green, snow:white, blood:red, sun:yellow, banana:yellow, coal:black
lemon:yellow, tomato:red, strawberry:red, leaf:green, sea:blue, milk:white, night:black, chocolate:brown
carrot:orange, cherry:red, frog:green, crow:black, polar bear:white, fire:orange, rose:red, cloud:white
raven:black, gold:yellow, wood:brown, cucumber:green, pea:green, plum:purple, flamingo:pink, pig:pink
elephant:grey, mouse:grey, orange:orange, eggplant:purple, apple:red or green, swan:white, lettuce:green""")

ANIMALS = table("""dog:woof:four:puppy:mammal, cat:meow:four:kitten:mammal, cow:moo:four:calf:mammal
sheep:baa:four:lamb:mammal, pig:oink:four:piglet:mammal, duck:quack:two:duckling:bird
horse:neigh:four:foal:mammal, lion:roar:four:cub:mammal, frog:ribbit:four:tadpole:amphibian
mouse:squeak:four:pup:mammal, bee:buzz:six:larva:insect, bird:tweet:two:chick:bird
snake:hiss:no:snakelet:reptile, owl:hoot:two:owlet:bird, wolf:howl:four:pup:mammal
goat:baa:four:kid:mammal, rooster:cock-a-doodle-doo:two:chick:bird, chicken:cluck:two:chick:bird
hen:cluck:two:chick:bird, bear:growl:four:cub:mammal, tiger:roar:four:cub:mammal
donkey:hee-haw:four:foal:mammal, turkey:gobble:two:chick:bird, crow:caw:two:chick:bird""")

LEGS = table("""dog:four legs, cat:four legs, cow:four legs, horse:four legs, sheep:four legs
spider:eight legs, ant:six legs, bee:six legs, fly:six legs, butterfly:six legs, beetle:six legs
bird:two legs, duck:two legs, chicken:two legs, human:two legs, person:two legs, snake:no legs
fish:no legs, worm:no legs, frog:four legs, lion:four legs, elephant:four legs, octopus:eight arms
crab:ten legs, lobster:ten legs, mouse:four legs, pig:four legs, table:four legs, penguin:two legs
kangaroo:two legs and two small arms, insect:six legs, whale:no legs, lizard:four legs, tiger:four legs""")


def opposite(rng: random.Random) -> Turn:
    """The opposite of a word, in both directions where that is clear."""
    pair = rng.choice(OPPOSITES)
    left, right = pair if rng.random() < 0.6 else reversed(pair)
    return (
        ask(
            rng,
            "What is the opposite of {x}?|opposite of {x}|what's the opposite of {x}?|{x} opposite"
            "|Give me the opposite of {x}.|Tell me the opposite of {x}.|antonym of {x}|the opposite of {x} is"
            "|Which word means the opposite of {x}?|What is the opposite of the word {x}?",
            x=left,
        ),
        f"The opposite of {left} is {right}.",
    )


def plural(rng: random.Random) -> Turn:
    """The plural of a noun."""
    noun = rng.choice(REGULAR_PLURALS)
    noun, many = (noun, noun + "s") if rng.random() < 0.4 else rng.choice(SPECIAL_PLURALS)
    return (
        ask(
            rng,
            "What is the plural of {x}?|plural of {x}|what's the plural of {x}?|{x} plural"
            "|Give me the plural of {x}.|How do you write the plural of {x}?|one {x}, two"
            "|what is the plural form of {x}?|make {x} plural",
            x=noun,
        ),
        f"The plural of {noun} is {many}.",
    )


def past(rng: random.Random) -> Turn:
    """The past tense of a verb."""
    verb, form = rng.choice(PASTS)
    return (
        ask(
            rng,
            "What is the past tense of {x}?|past tense of {x}|past of {x}|what's the past (form/) of {x}?"
            "|Give me the past tense of {x}.",
            x=verb,
        ),
        f"The past tense of {verb} is {form}.",
    )


def rhyme(rng: random.Random) -> Turn:
    """A word that rhymes with another."""
    one, two = rng.choice(RHYMES)
    return (
        ask(
            rng,
            "What rhymes with {x}?|rhyme with {x}|a word that rhymes with {x}|find a rhyme for {x}"
            "|give me a word that rhymes with {x}|which word rhymes with {x}?",
            x=one,
        ),
        f"{upper_first(two)} rhymes with {one}.",
    )


_MASS = {"grass", "snow", "blood", "milk", "night", "fire", "chocolate", "coal", "gold", "wood", "lettuce"}
_SINGLE = {"sky", "sun", "sea"}


def colour(rng: random.Random) -> Turn:
    """The colour of a thing."""
    thing, shade = rng.choice(COLOURS)
    name = thing if thing in _MASS else f"the {thing}" if thing in _SINGLE else article(thing)
    return (
        ask(
            rng,
            "What colo(u/)r is {x}?|what is the colo(u/)r of {x}?|colo(u/)r of {x}|which colo(u/)r is {x}?"
            "|tell me the colo(u/)r of {x}|What colo(u/)r does {x} have?|what colo(u/)r is {x} (usually/normally)?",
            x=name if rng.random() < 0.8 else thing,
        ),
        f"{upper_first(name)} is {shade}.",
    )


def animal(rng: random.Random) -> Turn:
    """The sound, the young or the kind of an animal."""
    name, sound, _, young, kind = rng.choice(ANIMALS)
    draw = rng.random()
    if draw < 0.5:
        question = ask(
            rng,
            "What (sound/noise) does {x} make?|what does {x} say?|{x} sound|how does {x} go?"
            "|Which sound does {x} make?|what does the {n} say?|what do {n}s say",
            x=article(name),
            n=name,
        )
        return question, f"{upper_first(article(name))} says {sound}."
    if draw < 0.75:
        question = ask(
            rng,
            "What is a baby {x} called?|baby {x}|how do you call a young {x}?|name of a baby {x}"
            "|what do you call a baby {x}?",
            x=name,
        )
        return question, f"A baby {name} is called {article(young)}."
    question = ask(rng, "What kind of animal is {x}?|What is {x}?|is {x} a mammal or a bird?|{x}", x=article(name))
    return question, f"{upper_first(article(name))} is {article(kind)}. It has {_legs(name)}."


def _legs(name: str) -> str:
    count = next(row[2] for row in ANIMALS if row[0] == name)
    return f"{count} legs"


def legs(rng: random.Random) -> Turn:
    """How many legs an animal has."""
    name, count = rng.choice(LEGS)
    return (
        ask(
            rng,
            "How many legs does {x} have?|how many legs has {x}?|number of legs of {x}|{n} legs"
            "|how many legs does the {n} have?|how many legs do {n}s have?|tell me how many legs {x} has",
            x=article(name),
            n=name,
        ),
        f"{upper_first(article(name))} has {count}.",
    )


FACTS = parse(r"""
? What is the (largest/biggest) planet? | which planet is the (largest/biggest)? | biggest planet (in the solar system/)
! Jupiter is the largest planet of our solar system.
? What is the smallest planet? | which planet is the smallest?
! Mercury is the smallest planet of our solar system.
? Which planet is called the red planet? | what is the red planet? | What is Mars?
! Mars is called the red planet. It is the fourth planet from the sun.
? How many planets are there (in the solar system/)? | number of planets | how many planets does the solar system have?
! There are eight planets in our solar system.
? (Name/List/what are/tell me) (all/) the planets (of the solar system/) | planets of the solar system
! The planets are Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus and Neptune.
? What is the (closest/nearest) planet to the sun? | which planet is closest to the sun?
! Mercury is the closest planet to the sun.
? What is the sun? | is the sun a star? | what is a star?
! The sun is a star. It is a very large ball of hot gas that gives us light and warmth.
? What is the moon? | tell me about the moon | does the moon move around the earth?
! The moon moves around the Earth. It takes about 27 days for one round.
? How far (away/) is the moon? | distance to the moon | how far is it to the moon?
! The moon is about 384000 kilometers away.
? How far (away/) is the sun? | distance to the sun
! The sun is about 150 million kilometers away.
? Why is the sky blue? | what makes the sky blue? | tell me why the sky is blue
! The air scatters blue light more than red light, so the sky looks blue.
? Why is the grass green? | why are leaves green?
! Leaves and grass are green because of chlorophyll, which they use to turn light into food.
? Is the earth (flat/round)? | what shape is the earth? | is the world (flat/round)?
! The Earth is round, like a ball.
? What is the largest ocean? | biggest ocean | which ocean is the (largest/biggest)?
! The Pacific is the largest ocean.
? What is the (highest/tallest) mountain (in the world/)? | how high is Mount Everest? | highest mountain
! Mount Everest is the highest mountain. It is 8849 meters high.
? What is the longest river (in the world/)? | longest river | how long is the Nile?
! The Nile is often called the longest river. It is about 6650 kilometers long.
? What is the (largest/biggest) country (in the world/)? | largest country by area
! Russia is the largest country in the world.
? What is the smallest country (in the world/)? | smallest country
! Vatican City is the smallest country in the world.
? what is the (largest/biggest) animal (in the world/)? | which animal is the largest? | biggest animal
! The blue whale is the largest animal.
? What is the fastest animal? | which animal is the fastest? | fastest land animal
! The cheetah is the fastest animal on land.
? What is the tallest animal? | which animal is the tallest?
! The giraffe is the tallest animal.
? (How many continents are there/name the continents/what are the continents/list the continents)?
! There are seven continents: Africa, Antarctica, Asia, Europe, North America, South America and Oceania.
? (How many/number of) days (are there in/are in/in/does) a year(/ have)? | how long is a year? | days per year
! A year has 365 days. A leap year has 366 days.
? (How many/number of) days (are there in/are in/in) a week? | how long is a week?
! A week has seven days.
? (How many/number of) months (are there in/are in/in) a year?
! A year has twelve months.
? (How many/number of) hours (are there in/are in/in) a day? | how long is a day? | hours per day
! A day has 24 hours.
? (How many/number of) minutes (are there in/are in/in) an hour? | how long is an hour? | minutes per hour
! An hour has 60 minutes.
? (How many/number of) seconds (are there in/are in/in) a minute? | how long is a minute?
! A minute has 60 seconds.
? (How many/number of) weeks (are there in/are in/in) a year?
! A year has 52 weeks.
? how many days does February have? | how many days are in February?
! February has 28 days, and 29 days in a leap year.
? (List/Name/What are/tell me/say) (all/) the days of the week | days of the week | what are the seven days?
! The days of the week are Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday.
? (List/Name/What are/tell me/say) (all/) the months (of the year/) | months of the year | what are the twelve months?
! The months are January, February, March, April, May, June, July, August, September, October, November
 and December.
? (List/Name/What are/tell me) the (four/) seasons | how many seasons are there? | seasons of the year
! The four seasons are spring, summer, autumn and winter.
? (say/write/tell me/recite/what is) the alphabet | alphabet | abc | list all letters | letters of the alphabet
! A B C D E F G H I J K L M N O P Q R S T U V W X Y Z
? how many letters (are in the alphabet/does the alphabet have/are there in the alphabet)?
! The English alphabet has 26 letters.
? what are the vowels? | list the vowels | name the vowels | vowels
! The vowels are a, e, i, o and u.
? What are the primary colo(u/)rs? | name the primary colo(u/)rs | primary colors
! The primary colours are red, yellow and blue.
? What are the colo(u/)rs of the rainbow? | rainbow colors | colours of a rainbow
! The colours of the rainbow are red, orange, yellow, green, blue, indigo and violet.
? what colo(u/)r do you get when you mix (blue and yellow/yellow and blue)? | (blue and yellow/yellow and blue)
 make | blue plus yellow
! Blue and yellow make green.
? what colo(u/)r do you get when you mix (red and blue/blue and red)? | red and blue make | red plus blue
! Red and blue make purple.
? what colo(u/)r do you get when you mix (red and yellow/yellow and red)? | red and yellow make
! Red and yellow make orange.
? What is water (made of/)? | chemical formula of water | what is H2O? | formula for water
! Water is made of hydrogen and oxygen. Its formula is H2O.
? At what temperature does water boil? | when does water boil? | boiling point of water | how hot is boiling water?
! Water boils at 100 degrees Celsius.
? At what temperature does water freeze? | when does water freeze? | freezing point of water
! Water freezes at 0 degrees Celsius.
? What is ice? | what is ice made of? | what is snow?
! Ice is frozen water.
? what is the speed of light? | how fast is light? | speed of light
! Light travels about 300000 kilometers per second.
? what is the speed of sound? | how fast is sound?
! Sound travels about 340 meters per second in air.
? what is gravity? | why do things fall? | who discovered gravity?
! Gravity is the force that pulls things towards each other. It makes apples fall to the ground. Isaac
 Newton described it.
? what is pi? | value of pi | how much is pi? | tell me pi
! Pi is about 3.14159.
? what do bees make? | where does honey come from? | who makes honey?
! Bees make honey from the nectar of flowers.
? where does milk come from? | who gives milk? | what gives us milk?
! Milk comes from cows, goats and sheep.
? what do (cows/rabbits/horses/sheep) eat? | what does a (cow/horse/rabbit) eat?
! They eat grass and other plants.
? what do cats (eat/like)? | what does a cat eat?
! Cats eat meat and fish. Many cats like to hunt mice.
? what do dogs (eat/like)? | what does a dog eat?
! Dogs eat meat and dog food. They like to play.
? what do (pandas/panda bears) eat? | what does a panda eat?
! Pandas eat bamboo.
? where do fish live? | where does a fish live? | where do (whales/sharks) live?
! They live in the water.
? where do birds live? | what is a nest? | where does a bird live?
! Birds live in trees and build nests.
? where do penguins live? | where does a penguin live?
! Most penguins live in the cold south, near Antarctica.
? where do bees live? | where does a bee live?
! Bees live in a hive.
? who wrote Hamlet? | who wrote Romeo and Juliet? | who was Shakespeare? | who is William Shakespeare?
! William Shakespeare, an English poet, wrote Hamlet and Romeo and Juliet.
? who painted the Mona Lisa? | who was Leonardo da Vinci? | who made the Mona Lisa?
! Leonardo da Vinci painted the Mona Lisa.
? who was (Albert/) Einstein? | who is (Albert/) Einstein? | what is E=mc2? | who found relativity?
! Albert Einstein was a physicist who found the theory of relativity.
? who was (Isaac/) Newton? | who is Isaac Newton?
! Isaac Newton was an English scientist who described gravity.
? who was Mozart? | who is Mozart? | who was (Bach/Beethoven)?
! He was a famous composer of music.
? who was Marie Curie? | who is Marie Curie?
! Marie Curie was a scientist who studied radioactivity.
? who was the first (man/person) on the moon? | who walked on the moon first? | who was Neil Armstrong?
! Neil Armstrong was the first person on the moon, in 1969.
? who was Alan Turing? | who is Alan Turing? | what is the Turing test?
! Alan Turing was one of the first computer scientists. His test asks whether a machine can talk like a
 person.
? who was Ada Lovelace? | who was the first programmer?
! Ada Lovelace wrote what is often called the first computer program.
? who was the first president of the (United States/USA)? | who was George Washington?
! George Washington was the first president of the United States.
? when did (World War 2/the second world war/WW2) end? | end of world war two
! The Second World War ended in 1945.
? what is the (Eiffel Tower/Colosseum/Big Ben)? | where is the Eiffel Tower?
! The Eiffel Tower is in Paris, the Colosseum in Rome, and Big Ben in London.
? what is the currency of (the US/the USA/America)? | what money do they use in the USA?
! The currency of the United States is the dollar.
? what is the currency of (Japan/the Japanese)? | what money do they use in Japan?
! The currency of Japan is the yen.
? what is the currency of (France/Germany/Italy/Spain)? | what is the money in (France/Germany/Italy/Spain) called?
! The currency there is the euro.
? what is the currency of (the UK/England/Britain)?
! The currency of the United Kingdom is the pound.
? how many (fingers/toes) (do you have/does a person have/do people have/does a human have)?
! A person has ten fingers and ten toes.
? how many eyes (do people have/does a person have/does a human have)? | how many ears do people have?
! A person has two eyes and two ears.
? how many (hearts does an octopus have/arms does an octopus have)?
! An octopus has eight arms and three hearts.
? how many wheels does a (car/bicycle/bike) have?
! A car has four wheels, and a bicycle has two wheels.
? how many (bones are in the body/bones does a person have)? | how many teeth do people have?
! An adult has 206 bones and about 32 teeth.
? what is bread made of? | how is bread made?
! Bread is made of flour, water, salt and yeast.
? what is cheese made of? | how is cheese made?
! Cheese is made of milk.
? what is (chocolate/wine/paper/glass) made of?
! Chocolate is made of cocoa, wine of grapes, paper of wood, and glass of sand.
? what is photosynthesis? | how do plants make food? | how do plants grow?
! Plants use light, water and air to make their food. This is called photosynthesis.
? why (do/does) it rain? | where does rain come from? | what is rain? | how does rain form?
! Water rises from the sea as vapour, forms clouds, and falls down as rain.
? what is a rainbow? | how does a rainbow form? | why are there rainbows?
! A rainbow appears when the sun shines on drops of rain, which split its light into colours.
? why do we (have day and night/see the sun rise)? | where does the sun rise? | where does the sun set?
! The Earth turns, so the sun seems to rise in the east and to set in the west.
? what is a (dinosaur/T. rex)? | are dinosaurs alive? | when did the dinosaurs die (out/)?
! Dinosaurs were large animals that died out about 66 million years ago.
? what is a (computer/laptop)? | how does a computer work?
! A computer is a machine that follows instructions and works with numbers very quickly.
? what is (the/) internet? | how does the internet work?
! The internet is a network that connects computers all over the world.
? what is (Python/a programming language)? | is Python a language? | what is programming?
! Python is a programming language. A program tells a computer what to do.
? what is Linux? | what is an operating system?
! Linux is an operating system, the program that lets other programs use the computer.
? what is (love/friendship)? | what is a friend?
! It is to care about somebody and to wish them well.
? what is (music/art)? | why do people like music?
! It is a way to show feelings with sounds or pictures.
? what is a (book/library)? | why should I read?
! A book holds stories and knowledge. A library is a house full of books.
? (is a tomato/are tomatoes) a fruit? | is a tomato a fruit or a vegetable?
! A tomato is a fruit, but it is cooked as a vegetable.
? what came first, the chicken or the egg? | chicken or egg? | which came first, the egg or the chicken?
! The egg. There were eggs long before there were chickens.
? (is/are) (Santa Claus/unicorns/dragons/ghosts) real? | do (unicorns/dragons/ghosts) exist?
! No, they live only in stories, but they are nice to think about.
? how do I learn to (code/program)? | how can I learn (programming/Python)?
! Start with small programs, run them, change them, and read the code of others.
? (can/do) (penguins/chickens/ostriches) fly? | can a penguin fly?
! No, penguins, chickens and ostriches cannot really fly.
? (can/do) birds fly? | can an (eagle/owl) fly? | can a bird fly?
! Yes, most birds can fly.
? can (fish/dolphins/ducks) swim? | can a (fish/dolphin/duck) swim?
! Yes, they can swim very well.
? can (pigs/cows/dogs/cats/horses) fly? | can a (pig/cow/dog/cat/horse) fly?
! No, they cannot fly.
? is (fire/the sun/boiling water) (hot/cold)? | is fire hot or cold?
! It is very hot.
? is (ice/snow) (hot/cold)? | is ice hot or cold?
! It is cold.
? is a whale a fish? | are whales fish? | is a dolphin a fish?
! No, whales and dolphins are mammals.
? is a spider an insect? | are spiders insects?
! No, a spider has eight legs, and insects have six.
? is a (dog/cat/cow/horse/lion/mouse) an animal? | are dogs animals?
! Yes, it is an animal.
? is an (apple/orange) a fruit? | is a (banana/pear/cherry) a fruit?
! Yes, it is a fruit.
? is a (carrot/potato/cucumber/onion) a fruit? | is a carrot a vegetable?
! It is a vegetable.
? is water wet? | is the sea salty? | is sugar sweet? | is the (sky blue/grass green/snow white)?
! Yes, it is.
? is the moon made of cheese? | can you eat the moon?
! No, the moon is made of rock.
? is Europe a (country/continent)? | is Africa a (country/continent)? | is Asia a (country/continent)?
! It is a continent.
? what weighs more, a (kilo/pound) of feathers or a (kilo/pound) of (iron/stones/gold)?
! They weigh the same.
""")

THINGS_DEFINED = table(
    """apple:a round fruit that grows on trees, banana:a long yellow fruit
bread:a food made of flour and water, car:a machine with four wheels that takes people along the road
house:a building in which people live, tree:a large plant with a trunk and branches
river:a long stream of water that flows to the sea, mountain:a very high hill, book:a set of pages to read
bicycle:a thing with two wheels that you ride, train:a row of wagons that runs on rails
school:a place in which children learn, teacher:a person who helps others to learn
doctor:a person who helps sick people, flower:the part of a plant that has bright colours
king:a man who rules a country, queen:a woman who rules a country, ship:a large boat, lake:water with land
 all around it, island:land with water all around it, city:a large town, country:a land with its own laws
phone:a thing to talk with people who are far away, clock:a thing that shows the time
chair:a thing to sit on, table:a thing with legs and a flat top, bed:a thing to sleep in
pencil:a thing to write and draw with, robot:a machine that can do work on its own
dragon:a large animal in stories that can fly and breathe fire, pizza:a flat bread with tomato and cheese
volcano:a mountain that can throw out fire and hot rock, desert:a dry land with very little rain
piano:a large instrument with black and white keys, guitar:an instrument with strings""".replace("\n ", " ")
)


def definition(rng: random.Random) -> Turn:
    """What is an apple?"""
    thing, text = rng.choice(THINGS_DEFINED)
    name = thing if thing == "bread" else article(thing)
    return (
        ask(
            rng,
            "What is {x}?|what's {x}?|define {n}|what does {n} mean?|describe {x}|explain what {x} is|what is the {n}?"
            "|What is {x}?|what is {n}?|tell me what {x} is",
            x=name,
            n=thing,
        ),
        f"{upper_first(name)} is {text}.",
    )


HOWTO = parse(r"""
? How do I make tea? | how to make (a cup of/) tea | recipe for tea | how can I make tea?
! 1. Boil some water.\n2. Put a tea bag into a cup.\n3. Pour the water over it.\n4. Wait three minutes and
 take the bag out.
? How do I (boil/cook) an egg? | how to (boil/cook) (an egg/eggs) | how long do I boil an egg?
! 1. Boil some water in a pot.\n2. Put the egg in.\n3. Wait five minutes for a soft egg, or ten minutes for
 a hard one.\n4. Cool it in cold water.
? How do I make pancakes? | pancake recipe | recipe for pancakes | how to make pancakes | how to bake pancakes
! 1. Mix two cups of flour, two eggs and two cups of milk.\n2. Add a little salt and sugar.\n3. Heat some
 butter in a pan.\n4. Bake each pancake until both sides are golden.
? How do I (cook/make) pasta? | how to cook (pasta/spaghetti) | pasta recipe | recipe for pasta
! 1. Boil a large pot of water with salt.\n2. Add the pasta and cook it for about ten minutes.\n3. Drain the
 water.\n4. Add a sauce and enjoy it.
? How do I make (a sandwich/a cheese sandwich)? | how to make a sandwich | sandwich recipe
! 1. Take two slices of bread.\n2. Put butter on them.\n3. Add cheese, tomato and a leaf of lettuce.\n4. Put
 the slices together and enjoy it.
? How do I make coffee? | how to make coffee | coffee recipe
! 1. Boil some water.\n2. Put ground coffee into a filter.\n3. Pour the water slowly over it.\n4. Add milk and
 sugar if you like.
? How do I bake a cake? | cake recipe | recipe for a cake | how to bake a cake | how do I make a cake?
! 1. Mix butter, sugar, eggs and flour.\n2. Pour the dough into a form.\n3. Bake it for 45 minutes at 180
 degrees.\n4. Let it cool and decorate it.
? How do I make (a pizza/pizza)? | pizza recipe | recipe for pizza | how to make pizza
! 1. Make a dough of flour, water, salt and yeast.\n2. Roll it flat.\n3. Add tomato sauce and cheese.\n4. Bake
 it for 12 minutes in a very hot oven.
? How do I make soup? | soup recipe | recipe for soup | how to make (vegetable/) soup
! 1. Cut carrots, onions and potatoes into small pieces.\n2. Put them into a pot with water and salt.\n3. Cook
 them for half an hour.\n4. Serve the soup warm.
? How do I plant a tree? | how to plant a (tree/seed/flower) | how do I plant a (seed/flower)?
! 1. Dig a hole in the ground.\n2. Put the plant or the seed in.\n3. Cover it with earth.\n4. Give it water and
 light, and be patient.
? How can I sleep better? | how do I fall asleep? | I cannot sleep | tips for (better/) sleep
! Go to bed at the same time each day, keep the room dark and cool, and put your phone away.
? How can I learn better? | how do I study? | tips for learning | how can I remember things?
! Learn a little every day, take short breaks, and explain what you learned to somebody else.
? How do I (stay/be) healthy? | how can I stay (healthy/fit)? | tips for a healthy life
! Eat fruit and vegetables, move every day, drink water, and sleep enough.
? How do I (become/be) happy? | how can I be happy? | what makes people happy?
! Spend time with friends, be kind, go outside, and do something you like every day.
? Give me (some/) advice | what is your advice? | do you have any advice (for me/)?
! (Be kind, and do one thing at a time./Take a short walk every day./Drink enough water and sleep
 well./Write down what you want to do tomorrow./If something is hard, start with a small part of it.)
""")

CODE = parse(r"""
? (Write/Show me/give me/) (a/the) hello world (program/) in Python | python hello world | print hello world in python
? hello world | hello world program | write hello world | Write a (simple/small/short/) (Python/) program
! print("Hello, world!")
? hello world in (JavaScript/js) | write hello world in javascript
! console.log("Hello, world!");
? hello world in C | write hello world in C
! #include <stdio.h>\n\nint main(void) {\n    printf("Hello, world!\n");\n    return 0;\n}
? hello world in bash | write hello world in (shell/bash)
! echo "Hello, world!"
? (Write/Show me/give me) (a/) (Python/) (function/code/program/script) (that adds two numbers/to add two numbers)
? python add two numbers | write code to add two numbers
! def add(a, b):\n    return a + b
? (Write/Show me/give me) (a/) (Python/) (function/code/program) (for/to compute/that computes) (the/) (Fibonacci
 numbers/fibonacci)
? fibonacci in python | python fibonacci | fibonacci code
! def fibonacci(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a
? (Write/Show me/give me) (a/) (Python/) (function/code/program) (for/to compute/that computes) (the/) factorial
? factorial in python | python factorial
! def factorial(n):\n    return 1 if n < 2 else n * factorial(n - 1)
? (Write/Show me/give me) (a/) (Python/) (function/code/program) (to reverse/that reverses) a (string/word) |
 reverse a string in python
! def reverse(text):\n    return text[::-1]
? (Write/Show me/give me) a (for/) loop in python | python (for/) loop | how do I write a loop in Python?
! for i in range(10):\n    print(i)
? (Write/Show me/give me) (some/) (Python/) code (in Python/) | can you (write code/code/program)? | write (me/)
 some code
! I can write very small programs. Here is one:\n\nfor i in range(3):\n    print("Hello", i)
""")

JOKES = [
    "Why did the token cross the road? To get to the other sequence!",
    "Why was the math book sad? It had too many problems.",
    "What do you call a bear without teeth? A gummy bear!",
    "Why did the bicycle fall over? It was two tired.",
    "What do you get when a cow jumps too high? A milk shake!",
    "Why was the computer cold? It left its windows open.",
    "What is brown and sticky? A stick!",
    "Why did the cat sit on the computer? To keep an eye on the mouse.",
    "What did one wall say to the other wall? Let us meet at the corner!",
    "Why are fish so clever? They live in schools.",
    "Why did the KV cache feel lonely? Somebody had evicted its best block.",
    "What did the zero say to the eight? Nice belt!",
]
RIDDLES = [
    "What has hands but cannot clap? A clock.",
    "What has a neck but no head? A bottle.",
    "What gets wetter the more it dries? A towel.",
    "What has many teeth but cannot bite? A comb.",
    "What goes up but never comes down? Your age.",
    "What has one eye but cannot see? A needle.",
]
FUN_FACTS = [
    "An octopus has three hearts.",
    "Honey can stay good for thousands of years.",
    "A day on Venus is longer than a year on Venus.",
    "Bananas are berries, but strawberries are not.",
    "A group of crows is called a murder.",
    "Sea otters hold hands when they sleep.",
    "A bolt of lightning is hotter than the surface of the sun.",
    "Sound travels faster in water than in air.",
]
HAIKUS = [
    "Rain on the old roof\nthe cat listens and then sleeps\nthe night goes slowly",
    "Morning on the hill\na bird begins its first song\nthe sun is awake",
    "Snow upon the path\nno one has walked here today\nonly a small fox",
    "Water in the pipe\nthe turbine begins to hum\nlight in every house",
    "A leaf on the pond\nthe wind pushes it along\nautumn says hello",
]


def amusement(rng: random.Random) -> Turn:
    """A joke, a riddle, a fun fact or a haiku."""
    kind = rng.random()
    if kind < 0.55:
        return ask(
            rng,
            "Tell me a (joke/funny joke/good joke).|joke|tell a joke|do you know a joke?|make a joke"
            "|(another/one more) joke|tell me another joke|do you know any jokes?|joke please"
            "|can you tell (me/) a joke?|I want to hear a joke|know any good jokes?",
        ), rng.choice(JOKES)
    if kind < 0.7:
        return ask(rng, "Tell me a riddle.|riddle|do you know a riddle?|give me a riddle"), rng.choice(RIDDLES)
    if kind < 0.85:
        return ask(
            rng,
            "Tell me a (fun/interesting/) fact.|fun fact|tell me something (interesting/new)"
            "|give me a fact|do you know a fun fact?|surprise me",
        ), rng.choice(FUN_FACTS)
    return ask(
        rng,
        "Write a haiku.|haiku|write me a haiku|can you write a haiku?|give me a haiku about {x}",
        x=rng.choice(PLAIN_WORDS),
    ), rng.choice(HAIKUS)


# --- sequences -----------------------------------------------------------------------------------

DAYS = words("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday")
MONTHS = words("""January, February, March, April, May, June, July, August, September, October, November,
December""")
LETTERS = [chr(code) for code in range(ord("A"), ord("Z") + 1)]


def neighbour(rng: random.Random) -> Turn:
    """What comes before or after a day, a month, a letter or a number."""
    row = rng.choice((DAYS, DAYS, MONTHS, MONTHS, LETTERS, [str(n) for n in range(100)]))
    at, after = rng.randrange(1, len(row) - 1), rng.random() < 0.6
    if row is DAYS or row is MONTHS:
        at = rng.randrange(len(row))
    item, other = row[at], row[(at + (1 if after else -1)) % len(row)]
    side = "after" if after else "before"
    kind = "day" if row is DAYS else "month" if row is MONTHS else "letter" if row is LETTERS else "number"
    question = ask(
        rng,
        "What comes {s} {x}?|(what/which) {k} comes {s} {x}?|{k} {s} {x}|what is the {k} {s} {x}?"
        "|which {k} is {s} {x}?|what comes (right/directly/just) {s} {x}?|what is {s} {x}?",
        s=side,
        x=item,
        k=kind,
    )
    return question, f"{other} comes {side} {item}."


def today(rng: random.Random) -> Turn:
    """Tomorrow and yesterday, given today."""
    at = rng.randrange(7)
    step, word = rng.choice(((1, "tomorrow"), (-1, "yesterday")))
    tense = "is" if step > 0 else "was"
    question = ask(
        rng,
        "(If today is/Today is/if it is) {x}(,/) (what/which) day {t} {w}?|today is {x}. what is {w}?",
        x=DAYS[at],
        t=tense,
        w=word,
    )
    return question, f"If today is {DAYS[at]}, {word} {tense} {DAYS[(at + step) % 7]}."


def ordinal(rng: random.Random) -> Turn:
    """The third month, the first day, the last letter."""
    row, kind = rng.choice(((DAYS, "day of the week"), (MONTHS, "month of the year"), (MONTHS, "month")))
    names = words("first, second, third, fourth, fifth, sixth, seventh, eighth, ninth, tenth, eleventh, twelfth")
    at = rng.randrange(len(row))
    return (
        ask(rng, "What is the {o} {k}?|Which is the {o} {k}?|the {o} {k}|name the {o} {k}", o=names[at], k=kind),
        f"The {names[at]} {kind} is {row[at]}.",
    )


def count(rng: random.Random) -> Turn:
    """Counting up, down or in steps."""
    kind = rng.random()
    low = rng.choice((1, 1, 0, rng.randint(2, 20), rng.randint(20, 90)))
    step = 1 if kind < 0.8 else rng.choice((2, 5, 10))
    high = low + step * rng.randint(3, 11 if rng.random() < 0.85 else 19)
    run = ", ".join(str(n) for n in range(low, high + 1, step))
    if kind < 0.25 and low < 2:
        return ask(rng, "Count to {h}.|count up to {h}|can you count to {h}?|numbers (up to/to) {h}", h=high), (
            ", ".join(str(n) for n in range(1, high + 1)) + "."
        )
    if kind < 0.6:
        return ask(
            rng,
            "Count from {l} to {h}.|count {l} to {h}|(list/say/write/give me) the numbers from {l} to {h}"
            "|numbers between {l} and {h}|count {l} - {h}|Please count from {l} up to {h}.",
            l=low,
            h=high,
        ), run + "."
    if kind < 0.8:
        down = ", ".join(str(n) for n in range(high, low - 1, -1))
        return ask(
            rng, "Count (down/backwards/back) from {h} to {l}.|countdown from {h} to {l}", l=low, h=high
        ), down + "."
    return ask(
        rng,
        "Count from {l} to {h} in steps of {s}.|count by {s}s from {l} to {h}|count in {s}s from {l} to {h}",
        l=low,
        h=high,
        s=step,
    ), run + "."


def pattern(rng: random.Random) -> Turn:
    """Continue a sequence of numbers."""
    start, step = rng.randint(0, 20), rng.choice((1, 2, 2, 3, 5, 5, 10, 10))
    run = [start + step * k for k in range(4 + rng.randrange(2))]
    shown = ", ".join(map(str, run))
    return (
        ask(
            rng,
            "What comes next: {r}?|continue: {r}|{r}, ...|next number: {r}|what is the next number after {r}?",
            r=shown,
        ),
        f"The next number is {run[-1] + step}.",
    )


# --- arithmetic ----------------------------------------------------------------------------------

SMALL_NUMBERS = words("zero, one, two, three, four, five, six, seven, eight, nine, ten")
SUM_ASKS = (
    "What is {e}?|what's {e}?|{e}|{e}=|{e} = ?|how much is {e}?|calculate {e}|compute {e}|solve {e}|{e}?|what is {e}"
)
SIGNS = {
    "+": ["+", "plus", "+", "and"],
    "-": ["-", "minus", "-"],
    "*": ["*", "x", "times", "*"],
    "/": ["/", "divided by"],
}


def expression(rng: random.Random, a: int, sign: str, b: int) -> str:
    """The two numbers and the sign as people write them."""
    word = rng.choice(SIGNS[sign])
    if max(a, b) <= 10 and rng.random() < 0.08 and len(word) > 1:
        return f"{SMALL_NUMBERS[a]} {word} {SMALL_NUMBERS[b]}"
    return f"{a}{word}{b}" if len(word) == 1 and word != "x" and rng.random() < 0.4 else f"{a} {word} {b}"


def add_steps(a: int, b: int) -> str:
    """The sum with the steps that lead to it, where it has any."""
    units = a % 10 + b % 10
    if a + b <= 20 or min(a, b) == 0 or (a % 10 == 0 and b % 10 == 0):
        return f"{a} + {b} = {a + b}."
    if min(a, b) < 10:
        tens = max(a, b) // 10 * 10
        return f"{a % 10} + {b % 10} = {units}, {tens} + {units} = {a + b}, so {a} + {b} = {a + b}."
    tens = a // 10 * 10 + b // 10 * 10
    return (
        f"{a // 10 * 10} + {b // 10 * 10} = {tens}, {a % 10} + {b % 10} = {units}, "
        f"{tens} + {units} = {a + b}, so {a} + {b} = {a + b}."
    )


def subtract_steps(a: int, b: int) -> str:
    """The difference with the steps that lead to it, where it has any."""
    if b < 10 or b % 10 == 0 or a < b:
        return f"{a} - {b} = {a - b}."
    tens = b // 10 * 10
    return f"{a} - {tens} = {a - tens}, {a - tens} - {b % 10} = {a - b}, so {a} - {b} = {a - b}."


def multiply_steps(a: int, b: int) -> str:
    """The product with the steps that lead to it, where it has any."""
    if a <= 10 or a % 10 == 0:
        return f"{a} * {b} = {a * b}."
    tens = a // 10 * 10
    return (
        f"{tens} * {b} = {tens * b}, {a % 10} * {b} = {a % 10 * b}, "
        f"{tens * b} + {a % 10 * b} = {a * b}, so {a} * {b} = {a * b}."
    )


def addition(rng: random.Random) -> Turn:
    """A sum: half of them with one digit, the others with one or two."""
    small = rng.random() < 0.4
    a, b = (rng.randint(0, 10), rng.randint(0, 10)) if small else (rng.randint(1, 99), rng.randint(1, 99))
    if not small and rng.random() < 0.25:
        b = rng.randint(1, 9)
    if rng.random() < 0.08:
        return ask(rng, "add {a} and {b}|add {a} to {b}|(what is the/) sum of {a} and {b}", a=a, b=b), add_steps(a, b)
    return ask(rng, SUM_ASKS, e=expression(rng, a, "+", b)), add_steps(a, b)


def subtraction(rng: random.Random) -> Turn:
    """A difference."""
    small = rng.random() < 0.5
    a, b = (rng.randint(0, 10), rng.randint(0, 10)) if small else (rng.randint(10, 99), rng.randint(1, 99))
    if a < b and rng.random() < 0.9:
        a, b = b, a
    if not small and rng.random() < 0.3:
        a, b = rng.randint(10, 40), rng.randint(1, 9)
    if a < b and not small:
        a, b = b, a
    return ask(rng, SUM_ASKS, e=expression(rng, a, "-", b)), subtract_steps(a, b)


def multiplication(rng: random.Random) -> Turn:
    """A product of small numbers, or a small quotient."""
    a, b = rng.randint(0, 10), rng.randint(0, 10)
    if rng.random() < 0.15 and b > 0:
        return ask(rng, SUM_ASKS, e=expression(rng, a * b, "/", b)), f"{a * b} / {b} = {a}."
    if rng.random() < 0.15:
        a, b = rng.randint(11, 49), rng.randint(2, 9)
    return ask(rng, SUM_ASKS, e=expression(rng, a, "*", b)), multiply_steps(a, b)


def too_large(rng: random.Random) -> Turn:
    """Sums outside of what the model is taught."""
    a, b = rng.randint(100, 9999), rng.randint(10, 9999)
    sign = rng.choice("+-*/*")
    return ask(rng, SUM_ASKS, e=expression(rng, a, sign, b)), (
        "These numbers are too large for me. I can do small sums, such as 23 + 45."
    )


def compare(rng: random.Random) -> Turn:
    """Which number is larger, and is a number even?"""
    a, b = rng.sample(range(100 if rng.random() < 0.5 else 12), 2)
    if rng.random() < 0.5:
        word = rng.choice(("larger", "bigger", "smaller"))
        best = min(a, b) if word == "smaller" else max(a, b)
        return ask(
            rng,
            "Which (number/one/) is {w}, {a} or {b}?|what is {w}, {a} or {b}?|which is {w}: {a} or {b}",
            w=word,
            a=a,
            b=b,
        ), f"{best} is {word} than {a + b - best}."
    if rng.random() < 0.5:
        verdict = "Yes" if a > b else "No"
        return ask(rng, "Is {a} (larger/bigger/greater/more) than {b}?", a=a, b=b), (
            f"{verdict}, {max(a, b)} is larger than {min(a, b)}."
        )
    return ask(rng, "Is {a} (even or odd/odd or even/even/odd/an even number/an odd number)?", a=a), (
        f"{a} is {'odd' if a % 2 else 'even'}."
    )


def sort_numbers(rng: random.Random) -> Turn:
    """Sort a few numbers, or find the largest."""
    row = rng.sample(range(10 if rng.random() < 0.5 else 50), rng.randint(3, 5))
    shown = rng.choice((", ", " ")).join(map(str, row))
    if rng.random() < 0.3:
        word, best = rng.choice((("largest", max(row)), ("smallest", min(row))))
        return ask(rng, "What is the {w} of {r}?|{w} number: {r}|find the {w} number: {r}", w=word, r=shown), (
            f"The {word} number is {best}."
        )
    return ask(rng, "Sort {r}|Sort these numbers: {r}|sort the numbers {r}|order {r}|put {r} in order", r=shown), (
        ", ".join(map(str, sorted(row))) + "."
    )


THINGS = words("apples, books, coins, pens, cakes, eggs, stones, balls, stars, cards, flowers, cookies, shells, stamps")


def word_problem(rng: random.Random) -> Turn:
    """A sum told as a story."""
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    a, b = rng.randint(1, 10), rng.randint(1, 10)
    if rng.random() < 0.5:
        question = ask_exact(
            rng,
            "{n} has {a} {t} and (gets/buys/finds) {b} more. How many {t} does {n} have (now/)?",
            n=name,
            a=a,
            b=b,
            t=thing,
        )
        return question, f"{a} + {b} = {a + b}. {name} has {a + b} {thing}."
    a, b = a + b, b
    question = ask_exact(
        rng,
        "{n} has {a} {t} and (loses/eats/gives away/sells) {b}. How many {t} (does {n} have/are) left?",
        n=name,
        a=a,
        b=b,
        t=thing,
    )
    return question, f"{a} - {b} = {a - b}. {name} has {a - b} {thing} left."


# --- words and copying ---------------------------------------------------------------------------


def short_word(rng: random.Random) -> str:
    """A word short enough to spell."""
    word = any_word(rng)
    return word if len(word) <= 7 else short_word(rng)


def spelling(rng: random.Random) -> Turn:
    """Spell a word, turn it round, or count its letters."""
    word = short_word(rng)
    spelled, kind = "-".join(word), rng.random()
    if kind < 0.4:
        return ask_exact(
            rng,
            "Spell {x}.|spell the word {x}|how do you spell {x}?|how is {x} spelled?|spell {x} for me|spelling of {x}",
            x=word,
        ), f"{word}: {spelled}."
    if kind < 0.7:
        return ask_exact(
            rng,
            "Reverse {x}|reverse the word {x}|(write/spell/say) {x} backwards|what is {x} backwards?"
            "|{x} backwards|turn {x} around",
            x=word,
        ), f"{word}: {spelled}. Backwards: {'-'.join(word[::-1])}, {word[::-1]}."
    if kind < 0.9:
        return ask_exact(
            rng,
            "How many letters (are in/does) {x}(/ have)?|how many letters are in the word {x}?|count the letters in {x}"
            "|length of {x}|how long is the word {x}?",
            x=word,
        ), f"{word}: {spelled}. It has {len(word)} letters."
    side, letter = rng.choice((("first", word[0]), ("last", word[-1])))
    return ask_exact(
        rng, "What is the {s} letter of {x}?|{s} letter of {x}|the {s} letter of the word {x}", s=side, x=word
    ), f"The {side} letter of {word} is {letter}."


def echo(rng: random.Random) -> Turn:
    """Repeat what was said."""
    text = some_words(rng, 1, 7)
    if rng.random() < 0.35:
        text = upper_first(text) + rng.choice((".", "!", "", ""))
    if rng.random() < 0.15:
        text = f"{text} {rng.randint(0, 999)}"
    return ask_exact(
        rng,
        "Repeat after me: {x}|repeat: {x}|say {x}|Say: {x}|repeat {x}|write {x}|Please say {x}|echo {x}"
        '|can you say {x}|Repeat this: {x}|copy this: {x}|Say "{x}"|please repeat: {x}',
        x=text,
    ), text


def repeat_times(rng: random.Random) -> Turn:
    """Say a word several times."""
    word, times = any_word(rng), rng.randint(2, 6)
    counts = {2: ("2 times", "two times", "twice"), 3: ("3 times", "three times")}
    shown = rng.choice(counts.get(times, (f"{times} times", f"{SMALL_NUMBERS[times]} times")))
    return ask_exact(
        rng, "Say {x} {n}.|repeat {x} {n}|write {x} {n}|write the word {x} {n}", x=word, n=shown
    ), " ".join([word] * times)


LISTS = {
    key.strip(): words(items)
    for key, items in (
        line.split(":")
        for line in """
fruits: apple, pear, plum, banana, orange, cherry, grape, lemon, peach, mango
vegetables: carrot, potato, onion, cucumber, tomato, pea, bean, cabbage, pumpkin
animals: dog, cat, horse, cow, lion, elephant, mouse, rabbit, bear, fox
birds: owl, eagle, duck, swan, crow, robin, penguin, sparrow
colours: red, blue, green, yellow, orange, purple, black, white, brown, pink
colors: red, blue, green, yellow, orange, purple, black, white, brown, pink
countries: France, Italy, Japan, Brazil, Canada, Egypt, India, Kenya, Norway, Peru
cities: Paris, London, Rome, Tokyo, Berlin, Cairo, Lima, Oslo, Madrid, Vienna
capitals: Paris, London, Rome, Tokyo, Berlin, Cairo, Lima, Oslo, Madrid, Vienna
planets: Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus, Neptune
drinks: water, tea, milk, coffee, juice, lemonade
sports: football, tennis, swimming, running, chess, basketball, cycling
flowers: rose, tulip, daisy, lily, sunflower, violet
trees: oak, pine, birch, maple, apple tree, willow
instruments: piano, violin, guitar, flute, drum, trumpet
languages: English, French, German, Spanish, Italian, Japanese, Chinese
programming languages: Python, C, Java, Rust, Go, JavaScript
jobs: teacher, doctor, baker, farmer, nurse, pilot, cook
foods: bread, cheese, soup, pizza, rice, pasta, salad
names: Anna, Ben, Clara, David, Emma, Felix, Grace, Henry
shapes: circle, square, triangle, rectangle, star
insects: bee, ant, fly, butterfly, beetle
rivers: Nile, Amazon, Danube, Rhine, Ganges
continents: Africa, Asia, Europe, North America, South America
numbers: one, two, three, four, five, six, seven, eight
tools: hammer, saw, screwdriver, drill, knife
clothes: shirt, hat, coat, shoes, socks, scarf
rooms: kitchen, bedroom, bathroom, living room
metals: iron, gold, silver, copper, tin
sweets: cake, chocolate, ice cream, honey, cookies
""".strip().split("\n")
    )
}


def joined(items: Sequence[str]) -> str:
    """Items as in a sentence: commas, and an `and` before the last."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def listing(rng: random.Random) -> Turn:
    """Name some things of a kind."""
    kind = rng.choice(list(LISTS))
    number = rng.randint(2, min(5, len(LISTS[kind])))
    items = rng.sample(LISTS[kind], number)
    shown = SMALL_NUMBERS[number] if rng.random() < 0.5 else str(number)
    if rng.random() < 0.3:
        return ask(
            rng,
            "(List/Write a list of/Make a list of/give me a list of) {n} {k}.|a numbered list of {n} {k}",
            n=shown,
            k=kind,
        ), "\n".join(f"{i}. {upper_first(item)}" for i, item in enumerate(items, 1))
    if rng.random() < 0.25:
        return ask(
            rng, "Name (some/a few) {k}.|give me some {k}|(which/what) {k} do you know?|list some {k}|name {k}", k=kind
        ), upper_first(joined(rng.sample(LISTS[kind], min(4, len(LISTS[kind]))))) + "."
    return ask(
        rng,
        "Name {n} {k}.|tell me {n} {k}|give me {n} {k}|can you name {n} {k}?|{n} {k}|I need {n} {k}"
        "|what are {n} {k}?|Please name {n} {k}.|think of {n} {k}",
        n=shown,
        k=kind,
    ), upper_first(joined(items)) + "."


def name_one(rng: random.Random) -> Turn:
    """Name one thing, or a favourite."""
    kind = rng.choice([k for k in LISTS if k not in {"clothes", "sweets", "foods", "countries", "cities"}])
    one, item = kind.removesuffix("s"), rng.choice(LISTS[kind])
    if rng.random() < 0.5:
        return ask(
            rng,
            "What is your favo(u/)rite {x}?|which {x} do you like (best/most)?|your favorite {x}?|favourite {x}",
            x=one,
        ), f"I have no real favourites, but if I had to choose, I would say {item}."
    return ask(
        rng, "Name (a/one) {x}.|give me (a/one) {x}|tell me (a/one) {x}|(pick/choose) a {x}", x=one
    ), f"{upper_first(item)}."


JSON_KEYS: dict[str, list[object]] = {
    "name": list(NAMES), "age": list(range(5, 90)), "city": ["Paris", "Rome", "Oslo", "Lima", "Tokyo", "Berlin"],
    "country": ["France", "Italy", "Norway", "Peru", "Japan"], "color": ["red", "blue", "green"],
    "email": ["anna@example.com", "ben@example.com"], "id": list(range(1, 100)), "active": [True, False],
    "price": [5, 9, 12, 20], "title": ["The Old House", "Blue River", "My Friend"], "year": [1999, 2005, 2020],
    "animal": ["dog", "cat", "horse"], "job": ["teacher", "doctor", "baker"], "height": list(range(120, 200)),
    "tags": [["red", "blue"], ["small", "new"]], "hobby": ["chess", "music", "tennis"], "score": list(range(1, 100)),
    "fruit": ["apple", "pear", "plum"], "quantity": list(range(1, 20)), "status": ["ok", "open", "done"],
}  # fmt: skip


def json_object(rng: random.Random) -> Turn:
    """A JSON object with the given keys, or with the given values."""
    keys = rng.sample(list(JSON_KEYS), rng.randint(1, 4))
    if rng.random() < 0.4:
        keys = ["name", *[key for key in keys if key != "name"]][:4]
    value: dict[str, object] = {key: rng.choice(JSON_KEYS[key]) for key in keys}
    if rng.random() < 0.35:
        if "name" in value:
            value["name"] = any_name(rng)
        given = joined(
            [f"{key} {item}" for key, item in value.items() if not isinstance(item, list | bool)] or ["id 1"]
        )
        value = {k: v for k, v in value.items() if not isinstance(v, list | bool)} or {"id": 1}
        return ask_exact(
            rng, "(Give me/Write/Make/Return/create) (a JSON object/JSON/a json) with {g}.|JSON: {g}", g=given
        ), json.dumps(value)
    return ask(
        rng,
        "(Give me/Write/Make/Return/create/show me/output) (a JSON object/JSON/a json/an example JSON object) with"
        " (/the keys /the fields ){k}.|json with {k}|(answer/reply) in JSON with (the keys/) {k}|json object: {k}",
        k=joined(keys),
    ), json.dumps(value)


def json_plain(rng: random.Random) -> Turn:
    """Any JSON object, or a JSON list."""
    if rng.random() < 0.5:
        value = {"name": rng.choice(NAMES), "age": rng.randint(5, 90)}
        return ask(
            rng,
            "(Give me/Write/show me/output/make) (a/some) JSON (object/).|json|an example of JSON|a JSON example"
            "|(give me/create) (a user/a person) (as/in) JSON|json example",
        ), json.dumps(value)
    kind = rng.choice(list(LISTS))
    number = rng.randint(2, 4)
    return ask(
        rng,
        "(Give me/Write) a JSON (list/array) of {n} {k}.|{n} {k} as (a/) JSON (list/array)|json array of {n} {k}",
        n=number,
        k=kind,
    ), json.dumps(rng.sample(LISTS[kind], number))


TRANSLATIONS = table("""hello:bonjour:hola:hallo, thank you:merci:gracias:danke, yes:oui:si:ja, no:non:no:nein
goodbye:au revoir:adios:auf Wiedersehen, good morning:bonjour:buenos dias:guten Morgen
please:s'il vous plait:por favor:bitte, water:eau:agua:Wasser, bread:pain:pan:Brot, cat:chat:gato:Katze
dog:chien:perro:Hund, house:maison:casa:Haus, love:amour:amor:Liebe, friend:ami:amigo:Freund
red:rouge:rojo:rot, one:un:uno:eins, two:deux:dos:zwei, sun:soleil:sol:Sonne, good:bon:bueno:gut
night:nuit:noche:Nacht, I love you:je t'aime:te quiero:ich liebe dich, day:jour:dia:Tag""")


def translation(rng: random.Random) -> Turn:
    """A word in French, Spanish or German."""
    row, at = rng.choice(TRANSLATIONS), rng.randrange(3)
    language = ("French", "Spanish", "German")[at]
    return ask(
        rng,
        "(How do you say/What is) {x} in {l}?|translate {x} (to/into) {l}|{x} in {l}|say {x} in {l}"
        "|what is the {l} word for {x}?|{l} for {x}",
        x=row[0],
        l=language,
    ), f"In {language} it is: {row[at + 1]}."


# --- reading -------------------------------------------------------------------------------------

OWNED = words("ball, kite, hat, book, bike, cup, coat, lamp, car, drum, bag, boat, doll, scarf")
SHADES = words("red, blue, green, yellow, black, white, small, big, old, new")
SPOTS = words("kitchen, garden, school, park, library, forest, bedroom, office, station, shop")


def reading(rng: random.Random) -> Turn:
    """Some sentences, then a question about one of them."""
    people = [
        rng.choice(NAMES) if rng.random() < 0.6 else pseudo_word(rng).capitalize() for _ in range(rng.randint(2, 4))
    ]
    people = list(dict.fromkeys(people))
    who = rng.choice(people)
    if rng.random() < 0.5:
        spots = dict(zip(people, rng.sample(SPOTS, len(people)), strict=True))
        text = " ".join(f"{name} is in the {spot}." for name, spot in spots.items())
        return f"{text} Where is {who}?", f"{who} is in the {spots[who]}."
    owned = {
        name: f"{rng.choice(SHADES)} {thing}"
        for name, thing in zip(people, rng.sample(OWNED, len(people)), strict=True)
    }
    text = " ".join(f"{name} has {article(thing)}." for name, thing in owned.items())
    if rng.random() < 0.6:
        return f"{text} What does {who} have?", f"{who} has {article(owned[who])}."
    return f"{text} Who has {article(owned[who])}?", f"{who} has {article(owned[who])}."


LIKED = words("""pizza, music, football, cats, dogs, chocolate, summer, winter, books, films, coffee, tea, games,
cheese, ice cream, chess, swimming, flowers, cars, trains, dancing, cooking, rain, snow, the sea, horses""")


def liking(rng: random.Random) -> Turn:
    """Likes and dislikes."""
    thing = rng.choice(LIKED) if rng.random() < 0.7 else pseudo_word(rng)
    if rng.random() < 0.5:
        return ask_exact(rng, "Do you like {x}?|do you love {x}?|what do you think (about/of) {x}?", x=thing), (
            f"I am a computer program, so I cannot try {thing}, but many people like that."
        )
    return ask_exact(rng, "I (like/love/really like) {x}.|my favo(u/)rite thing is {x}|I am a fan of {x}", x=thing), (
        f"That is nice! What do you like most about {thing}?"
    )


# --- what the model does not know ----------------------------------------------------------------

TOPICS = words("""quantum physics, the stock market, the French revolution, blockchain, string theory, black holes,
the Roman Empire, organic chemistry, general relativity, world politics, the economy, inflation, taxes, bitcoin,
philosophy, Kant, Buddhism, the Bible, vaccines, cancer, the brain, genetics, DNA, evolution, climate change,
nuclear fusion, electric cars, aircraft engines, submarines, medieval art, jazz, baroque music, the piano sonata,
deep sea fish, volcanoes, earthquakes, the Cold War, Napoleon, Julius Caesar, Cleopatra, the pyramids, Kubernetes,
Docker, compilers, databases, SQL, cryptography, topology, calculus, integrals, differential equations, matrices,
prime numbers, statistics, the law, contracts, marketing, management, fashion, makeup, golf, cricket, the Olympics,
football results, the World Cup, movies, actors, pop stars, video games, anime, astrology, my horoscope, Shanghai,
Texas, the Amazon rainforest, wine regions, cocktails, sushi, knitting, guitars, photography, gardening, plumbing""")

TASKS = words("""fix my car, file my taxes, build a rocket, repair a phone, invest money, lose weight, write a thesis,
hack a computer, fly a plane, build a house, train a large model, play the violin, start a company, buy a house,
get a visa, install Windows, configure a router, win the lottery, cut my hair, paint a portrait, tie a tie,
solve a Rubik's cube, make sushi, knit a sweater, write a novel, speak Chinese, change a tire, find a job,
write a compiler, prove a theorem, book a flight, train for a marathon, cure a cold, become famous, do magic""")

UNKNOWN_ASKS = (
    "Explain {x}.|What is {x}?|Tell me about {x}.|What do you know about {x}?|Write an essay about {x}."
    "|how does {x} work?|Can you explain {x}?|summarize {x}|what is the history of {x}?|who invented {x}?"
    "|teach me {x}|what are the best books about {x}?|why is {x} important?|give me an overview of {x}"
)
UNKNOWN = [
    "I do not know that. I am a very small model, and I only know simple things.",
    "I am sorry, I do not know enough about that. I am a very small model.",
    "That is beyond me: I am a very small model. You could ask me about capitals, sums or stories.",
]


def unknown(rng: random.Random) -> Turn:
    """A question that is out of range."""
    kind, answer = rng.random(), rng.choice(UNKNOWN)
    if kind < 0.5:
        topic = rng.choice(TOPICS) if rng.random() < 0.75 else some_words(rng, 1, 2)
        return ask(
            rng,
            UNKNOWN_ASKS
            if topic in TOPICS
            else "Explain {x} to me in detail.|how does {x} work?|who invented {x}?"
            "|what is the history of {x}?|Write an essay about {x}.|write a report about {x}",
            x=topic,
        ), answer
    if kind < 0.7:
        return ask(
            rng,
            "How do I {x}?|how can I {x}?|how to {x}|help me (to/) {x}|can you {x}?|teach me to {x}",
            x=rng.choice(TASKS),
        ), answer
    if kind < 0.85:
        person = f"{any_name(rng)} {pseudo_word(rng).capitalize()}"
        return ask(
            rng,
            "Who is {x}?|who was {x}?|tell me about {x}|when was {x} born?|what did {x} do?|do you know {x}?",
            x=person,
        ), answer
    return ask(
        rng,
        "What happened in {y}?|who won the (election/world cup/prize) in {y}?|who is the (president/king/prime "
        "minister)"
        " of {c}?|what is the population of {c}?|how many people live in {c}?|who is the "
        "(richest/tallest/oldest) (man/person)?"
        "|what is the price of (gold/bitcoin/oil)?|how much does a (car/house/phone) cost?|write a "
        "(letter/cover letter/report/speech)"
        "|summarize this (article/text/book)|what is the best (phone/car/film/laptop)?|draw (a/me a) "
        "(picture/cat/house)",
        y=rng.randint(1500, 2026),
        c=rng.choice(COUNTRIES)[0],
    ), answer


def made_up_word(rng: random.Random) -> Turn:
    """A word that does not exist."""
    word = pseudo_word(rng)
    return ask_exact(rng, "What is {x}?|what does {x} mean?|define {x}|what is a {x}?|{x}?", x=word), (
        f"I do not know the word {word}. I am a very small model."
    )


# --- stories and poems ---------------------------------------------------------------------------

STORY_ANIMALS = words("""fox, bear, rabbit, mouse, owl, duck, cat, dog, turtle, frog, hedgehog, squirrel, lion,
elephant, penguin, dragon, robot, donkey, goat, whale, crow, pony""")
FRIENDS = words("an old owl, a kind turtle, a clever mouse, a brave dog, a friendly crow, a small frog, a wise fish")
PLACES = words("""a small village by the sea, a quiet valley, a house at the edge of the forest,
a little town on a hill, an old mill by the river, a green garden, a cabin in the mountains,
a lighthouse on a small island""")
TRAITS = words("curious, kind, brave, shy, cheerful, patient, clever, dreamy")
TREASURES = words("a golden key, a small red lantern, an old map, a silver bell, a blue stone, a music box")
SEASONS = words("spring, summer, autumn, winter")

OPENINGS = [
    "Once upon a time, there was {who} {named} who lived in {place}.",
    "Once upon a time, {who} {named} lived in {place}.",
    "Long ago, in {place}, there lived {who} {named}.",
    "There once was {who} {named} who lived in {place}.",
]
PORTRAITS = [
    "{name} was very {trait}, and everybody liked {him}.",
    "{name} was {trait} and loved to look at the stars at night.",
    "{He} was small, but {he} was also very {trait}.",
    "Every morning {name} drank a cup of tea and looked out of the window.",
]
PLOTS: list[list[list[str]]] = [
    [
        ["One day in {season}, {name} found {treasure} under an old tree.",
         "One morning, {name} went for a walk and found {treasure} in the grass."],
        ["\"Who has lost this?\" {he} wondered. So {he} set out to find the owner.",
         "\"Somebody must miss it,\" {he} thought, and {he} went to look for the owner."],
        ["On the way {he} met {friend}, who said, \"I will help you.\"",
         "Soon {he} met {friend}. \"Let us look together,\" said the new friend."],
        ["They asked at every door, but nobody knew it. Then it began to rain, and they had to wait under a bridge.",
         "They walked all day, over the hills and through the forest, but they found nobody."],
        ["At last they came to an old woman who sat alone by the road. \"That is mine!\" she cried with joy.",
         "In the evening they saw a child who was crying. \"You have found it!\" the child called and laughed."],
        ["She thanked them and gave them warm bread with honey.", "They all sat by the fire and ate soup together."],
    ],
    [
        ["One night in {season}, a great storm came, and the wind blew the roof off the house.",
         "One day, dark clouds came, and a storm broke the only bridge over the river."],
        ["{name} was afraid at first, but then {he} had an idea.", "At first {name} did not know what to do."],
        ["{He} ran to {friend} and asked for help.", "{He} called {friend}, and together they made a plan."],
        ["They carried wood and stones all day, and they sang while they worked.",
         "They worked until the sun went down, and they did not give up."],
        ["The next day all the neighbours came to help as well.",
        "Soon others saw them and came with ropes and nails."],
        ["After three days everything was better than before.",
        "When the work was done, they had a feast with cake and music."],
    ],
    [
        ["{name} had one big wish: {he} wanted to see the sea.",
        "All {his} life, {name} had wanted to climb the highest hill."],
        ["\"It is too far,\" said the others. But {name} packed a bag and left early in the morning.",
         "\"You are too small,\" said the others. But {name} did not listen and set out."],
        ["The way was long. {He} crossed a river, a field and a dark forest.",
         "{He} walked for two days, slept under the trees and drank from the river."],
        ["When {he} was tired, {friend} showed {him} a path.",
        "One evening {he} lost the way, but {friend} came along and helped."],
        ["At last {he} saw it: the water was blue and wide, and the sun danced on it.",
         "Then {he} stood at the end of the road, and the whole world lay before {him}."],
        ["{name} sat there for a long time and smiled.", "{name} was so happy that {he} laughed out loud."],
    ],
    [
        ["One day, {name} could not find {his} best friend anywhere.",
        "One morning in {season}, {name} heard a small voice that called for help."],
        ["{He} looked behind the house, in the garden and down by the river.",
        "{He} followed the voice into the forest."],
        ["There {he} saw {friend}, stuck in a deep hole.", "Under a fallen tree {he} found {friend}."],
        ["\"Do not worry,\" said {name}. \"I will get you out.\"", "\"Stay calm,\" said {name}, \"I am here now.\""],
        ["{He} took a long branch and pulled with all {his} strength.",
        "{He} pulled once, {he} pulled twice, and the third time it worked."],
        ["From that day on, the two did everything together.", "They walked home side by side and shared a big apple."],
    ],
    [
        ["{name} had a cake, and it was the best cake in the land.",
        "{name} had a garden in which the sweetest apples grew."],
        ["{He} did not want to share it with anybody.", "\"It is all mine,\" {he} said and closed the door."],
        ["Then {friend} came by, tired and hungry.", "In the evening {friend} knocked at the door and asked for food."],
        ["First {name} said no, but then {he} felt sorry and opened the door.",
        "{name} thought for a while, and then {he} said, \"Come in.\""],
        ["They ate together and told each other stories until late at night.",
        "They shared everything, and it tasted better than ever before."],
        ["Since then the door was always open.", "Since then {name} was never lonely again."],
    ],
]  # fmt: skip
ENDINGS = [
    "And they lived happily ever after.",
    "{name} went home with a happy heart. The end.",
    "So {name} learned that a good friend is worth more than gold.",
    "That night {name} slept well and dreamed of the next adventure.",
    "And if you listen well, you can still hear them laugh.",
]


def story_slots(rng: random.Random, animal: str, name: str) -> dict[str, str]:
    """The words that stay the same all through one story."""
    female, male = name in GIRLS, name in BOYS
    if not female and not male:
        female = rng.random() < 0.5
    person = "girl" if female else "boy"
    who = f"a little {animal}" if animal else rng.choice((f"a little {person}", f"a young {person}"))
    pronouns = ("she", "her", "her") if female else ("he", "him", "his")
    he, him, his = pronouns
    return {
        "who": who, "name": name, "named": f"called {name}", "he": he, "He": upper_first(he), "him": him, "his": his,
        "place": rng.choice(PLACES), "trait": rng.choice(TRAITS), "treasure": rng.choice(TREASURES),
        "friend": rng.choice(FRIENDS), "season": rng.choice(SEASONS),
    }  # fmt: skip


def story_text(rng: random.Random, animal: str, name: str, beats: int = 6) -> str:
    """A story: opening, portrait, the beats of one plot, ending."""
    slots = story_slots(rng, animal, name)
    plot = rng.choice(PLOTS)[:beats]
    parts = [rng.choice(OPENINGS), rng.choice(PORTRAITS), *(rng.choice(beat) for beat in plot), rng.choice(ENDINGS)]
    return " ".join(part.format(**slots) for part in parts)


def story(rng: random.Random) -> Turn:
    """A story on request, about a named child or an animal."""
    animal = rng.choice(STORY_ANIMALS if rng.random() < 0.7 else [*REGULAR_PLURALS, pseudo_word(rng)])
    name = rng.choice(GIRLS + BOYS)
    kind = rng.random()
    short = rng.random() < 0.2
    size, beats = ("short ", 3) if short else (rng.choice(("", "", "long ")), 6)
    verb = rng.choice(
        ("Tell me", "Write", "Tell", "Write me", "I want", "Can you tell me", "make up", "please tell me")
    )
    if kind < 0.35:
        return rough(rng, f"{verb} a {size}story."), story_text(rng, animal if rng.random() < 0.6 else "", name, beats)
    if kind < 0.75:
        return rough(rng, f"{verb} a {size}story about {article(animal)}.", typos=False), story_text(
            rng, animal, name, beats
        )
    if kind < 0.9:
        name = any_name(rng) if rng.random() < 0.5 else name
        return f"{verb} a {size}story about {name}.", story_text(rng, "", name, beats)
    return f"{verb} a {size}story about {article(animal)} called {name}.", (story_text(rng, animal, name, beats))


COUPLETS = {
    "sea": ["The sea is wide, the sea is blue,\nit sings a quiet song to you.",
    "The waves come in, the waves go out,\nand seagulls fly and turn about.",
            "A little boat goes far away\nand comes back home at end of day."],
    "moon": ["The moon looks down on field and tree\nand sends a silver light to me.",
    "The moon is round, the night is deep,\nthe birds are still, the children sleep.",
             "And if you wake, then look up high:\na quiet lamp hangs in the sky."],
    "sun": ["The sun comes up, the night is gone,\nthe birds begin their morning song.",
    "It warms the stone, it warms the sea,\nit warms the grass, it warms me.",
            "And when at last it leaves the sky,\nit paints the clouds to say goodbye."],
    "rain": ["The rain falls softly on the town,\nfrom roof to street it patters down.",
    "It fills the river, feeds the tree,\nand makes a little pond for me.",
             "And when the clouds have gone away,\na rainbow ends the rainy day."],
    "cat": ["My cat is soft, my cat is small,\nshe hunts her shadow on the wall.",
    "She sleeps all day upon my chair\nand acts as if I were not there.",
            "But in the evening, warm and near,\nshe purrs a song for me to hear."],
    "dog": ["My dog runs fast across the ground,\nhe brings me every stick he found.",
    "He barks at birds, he barks at me,\nhe barks at every single tree.",
            "And when the day is done at last,\nhe dreams that he is running fast."],
    "spring": ["The snow has gone, the days grow long,\nthe blackbird sings its evening song.",
    "The trees are green, the sky is clear,\nthe flowers say that spring is here.",
               "So open up your window wide\nand let the warm wind come inside."],
    "winter": ["The snow lies white on field and hill,\nthe lake is frozen, all is still.",
    "We light the fire, we drink our tea,\nas warm and happy as can be.",
               "And far away a single star\nsays, winter, lovely that you are."],
    "love": ["I have a friend, and that is you,\nin all I dream and all I do.",
    "A kind word costs you not a thing,\nand yet it makes the whole heart sing.",
             "So take my hand and walk with me\nalong the road, beside the sea."],
    "river": ["The river runs from hill to sea,\nit never stops to talk to me.",
    "It turns the mill, it moves the stone,\nit knows a thousand paths alone.",
              "And when it rests at end of day,\nit gives its water all away."],
    "": ["I wrote a poem about {x},\nI wrote it down for you today.",
    "It has no rhyme for {x}, my friend,\nbut still it has a happy end.",
         "For small as all my words may be,\nI hope you like this one from me."],
}  # fmt: skip


def poem_text(rng: random.Random, subject: str) -> str:
    """A poem of two or three couplets."""
    lines = COUPLETS.get(subject, COUPLETS[""])
    chosen = lines if subject not in COUPLETS or rng.random() < 0.7 else lines[:2]
    return "\n".join(chosen).format(x=subject)


def poem(rng: random.Random) -> Turn:
    """A poem on request."""
    subject = rng.choice([key for key in COUPLETS if key]) if rng.random() < 0.75 else any_word(rng)
    if rng.random() < 0.35 and subject in COUPLETS:
        return ask(
            rng, "Write (me/) a (short/) poem.|(tell/give) me a poem|poem|can you write a poem?|a poem please"
        ), poem_text(rng, subject)
    return ask_exact(
        rng,
        "Write (me/) a (short/) poem about (the/a/) {x}.|a poem about {x}|poem about {x}|can you write a poem "
        "about {x}?"
        "|(rhyme/poetry) about {x}",
        x=subject,
    ), poem_text(rng, subject)


# --- turns that belong together ------------------------------------------------------------------

MEMORIES = [
    ("My name is {x}.|I am {x}|i'm {x}|call me {x}|hi, I am {x}|Hello, my name is {x}.|hi my name is {x}|my name's {x}",
     "Nice to meet you, {x}! How can I help you?",
     "What is my name?|do you (know/remember) my name?|who am I?|say my name|what's my name?|tell me my name",
     "Your name is {x}."),
    ("I am {x} years old.|my age is {x}|i'm {x} years old|I am {x}",
     "Thank you for telling me. So you are {x} years old.",
     "How old am I?|what is my age?|do you remember my age?|do you know how old I am?",
     "You are {x} years old."),
    ("My favo(u/)rite colo(u/)r is {x}.|I like the colo(u/)r {x} best|the colour I like most is {x}",
     "{X} is a nice colour!",
     "What is my favo(u/)rite colo(u/)r?|which colo(u/)r do I like?|do you remember my favo(u/)rite colo(u/)r?",
     "Your favourite colour is {x}."),
    ("I live in {x}.|I am from {x}|my home is in {x}|I come from {x}",
     "{X} must be a nice place to live.",
     "Where do I live?|where am I from?|which city do I live in?|do you remember where I live?",
     "You live in {x}."),
    ("I have a {a} called {x}.|my {a} is called {x}|my {a}'s name is {x}|the name of my {a} is {x}",
     "{X} is a lovely name for a {a}!",
     "What is the name of my {a}?|what is my {a} called?|do you remember my {a}'s name?|how is my {a} called?",
     "Your {a} is called {x}."),
    ("Remember the (word/password) {x}.|please remember: {x}|the secret word is {x}|remember {x}",
     "All right, I will remember {x}.",
     "What was the (word/password)?|what is the secret word?|which word did I tell you?|what did I ask you to "
     "remember?",
     "It was {x}."),
]  # fmt: skip


def memory_value(rng: random.Random, kind: int) -> str:
    """Something to remember that fits the kind."""
    makers: list[Callable[[], str]] = [
        lambda: any_name(rng),
        lambda: str(rng.randint(5, 90)),
        lambda: rng.choice(LISTS["colours"]),
        lambda: rng.choice(COUNTRIES)[1] if rng.random() < 0.5 else pseudo_word(rng).capitalize(),
        lambda: any_name(rng),
        lambda: any_word(rng) if rng.random() < 0.8 else str(rng.randint(10, 9999)),
    ]
    return makers[kind]()


def memory(rng: random.Random) -> tuple[Turn, Turn]:
    """The turn in which something is told, and the turn in which it is asked for."""
    kind = rng.choice((0, 0, 0, 1, 2, 3, 4, 5))
    tell, reply, query, answer = MEMORIES[kind]
    value, pet = memory_value(rng, kind), rng.choice(("dog", "cat", "horse", "fish", "bird"))
    slots = {"x": value, "X": upper_first(value), "a": pet}
    return (
        (ask_exact(rng, tell, **slots), reply.format(**slots)),
        (ask_exact(rng, query, **slots), answer.format(**slots)),
    )


def capital_follow_up(rng: random.Random) -> list[Turn]:
    """A capital, then `and of Italy?`."""
    turns = [capital(rng)]
    for country, city, _ in rng.sample(COUNTRIES, rng.randint(1, 3)):
        turns.append(
            (
                ask(rng, "And of {x}?|and {x}?|What about {x}?|how about {x}?|and the capital of {x}?|{x}?", x=country),
                f"The capital of {country} is {city}.",
            )
        )
    return turns


def table_follow_up(rng: random.Random) -> list[Turn]:
    """An opposite, a colour or the like, then `and of big?`."""
    kind = rng.randrange(3)
    if kind == 0:
        (a, b), (c, d) = rng.sample(OPPOSITES, 2)
        return [
            (ask(rng, "What is the opposite of {x}?|opposite of {x}", x=a), f"The opposite of {a} is {b}."),
            (ask(rng, "And of {x}?|and {x}?|what about {x}?", x=c), f"The opposite of {c} is {d}."),
        ]
    if kind == 1:
        (a, b), (c, d) = rng.sample(SPECIAL_PLURALS, 2)
        return [
            (ask(rng, "What is the plural of {x}?|plural of {x}", x=a), f"The plural of {a} is {b}."),
            (ask(rng, "And of {x}?|and {x}?|what about {x}?", x=c), f"The plural of {c} is {d}."),
        ]
    (a, b), (c, d) = rng.sample(LEGS, 2)
    return [
        (ask(rng, "How many legs does {x} have?", x=article(a)), f"{upper_first(article(a))} has {b}."),
        (ask(rng, "And {x}?|what about {x}?|how about {x}?", x=article(c)), f"{upper_first(article(c))} has {d}."),
    ]


def again(rng: random.Random) -> list[Turn]:
    """A joke, a story or a poem, then another one."""
    if rng.choice(("joke", "joke", "story")) == "story":
        return [
            story(rng),
            (
                ask(rng, "another one|one more|tell me another one|Another story, please.|more"),
                story_text(rng, rng.choice(STORY_ANIMALS), rng.choice(GIRLS + BOYS), 4),
            ),
        ]
    one, two = rng.sample(JOKES, 2)
    return [
        (ask(rng, "Tell me a joke.|joke|do you know a joke?"), one),
        (ask(rng, "another one|one more|tell me another one|Another one, please.|more|again"), two),
    ]


def number_follow_up(rng: random.Random) -> list[Turn]:
    """A sum, then the same with another number."""
    a, b, c, d = (rng.randint(0, 10) for _ in range(4))
    return [
        (ask(rng, SUM_ASKS, e=f"{a} + {b}"), add_steps(a, b)),
        (ask(rng, "and {c} + {d}?|And {c} plus {d}?|what about {c} + {d}?|now {c} + {d}", c=c, d=d), add_steps(c, d)),
    ]


# --- whole conversations -------------------------------------------------------------------------

MAKERS: list[tuple[float, Maker]] = [
    (11, from_entries(TALK)), (6, term), (2, from_entries(FIELD)), (10, from_entries(FACTS)),
    (1.6, from_entries(HOWTO)),
    (1.6, from_entries(CODE)), (2.5, amusement), (5, capital), (2.5, country_of), (1, capital_check),
    (0.8, capital_unknown),
    (3, opposite), (2.2, plural), (1.2, past), (0.8, rhyme), (2.2, colour), (2.2, animal), (1.8, legs),
    (2.2, neighbour),
    (0.6, today), (0.6, ordinal), (2.2, count), (0.7, pattern), (6.5, addition), (4.5, subtraction),
    (4.5, multiplication),
    (0.5, too_large), (1.6, compare), (1, sort_numbers), (1.4, word_problem), (2.5, spelling), (4, echo),
    (0.8, repeat_times),
    (3.2, listing), (1.2, name_one), (2.5, json_object), (0.6, json_plain), (2, translation), (2.5, reading),
    (1.2, liking),
    (1.2, definition), (4.5, unknown), (0.8, made_up_word), (3.4, story), (1.8, poem),
]  # fmt: skip
GROUPS: list[Callable[[random.Random], list[Turn]]] = [
    capital_follow_up,
    capital_follow_up,
    table_follow_up,
    again,
    number_follow_up,
]

SYSTEMS = [
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a friendly and helpful assistant. Answer the questions of the user.",
    "You are Penstock's demo model.",
    "Be brief.",
    "You are a helpful assistant. Keep your answers short and clear.",
    "You are an expert. Answer all questions as well as you can. If you do not know the answer, say so. Be "
    "polite to the user.",
]


def single_turn(rng: random.Random) -> Turn:
    """One exchange of a random kind."""
    weights = [weight for weight, _ in MAKERS]
    return rng.choices([maker for _, maker in MAKERS], weights)[0](rng)


def turns(rng: random.Random) -> list[Turn]:
    """The exchanges of one conversation."""
    kind = rng.random()
    if kind < 0.12:
        tell, query = memory(rng)
        between = [single_turn(rng) for _ in range(rng.choice((0, 0, 1, 1, 2, 3, 5)))]
        return [tell, *between, query]
    if kind < 0.18:
        return rng.choice(GROUPS)(rng)
    return [single_turn(rng) for _ in range(rng.choice((1, 1, 1, 1, 2, 2, 3, 5)))]


def conversation(rng: random.Random) -> list[Message]:
    """One chat: sometimes a system message, then exchanges of user and assistant."""
    messages: list[Message] = []
    if rng.random() < 0.12:
        messages.append({"role": "system", "content": rng.choice(SYSTEMS)})
    for question, answer in turns(rng):
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    return messages


def plain_text(rng: random.Random) -> str:
    """One document without roles: a story, a poem, or a few definitions."""
    kind = rng.random()
    if kind < 0.75:
        animal = rng.choice(STORY_ANIMALS) if rng.random() < 0.6 else ""
        return story_text(rng, animal, rng.choice(GIRLS + BOYS))
    if kind < 0.85:
        return poem_text(rng, rng.choice([key for key in COUPLETS if key]))
    if kind < 0.95:
        return " ".join(" ".join(answers) for _, answers in rng.sample(TERMS, 2))
    return " ".join(f"The capital of {country} is {city}." for country, city, _ in rng.sample(COUNTRIES, 4))


# --- practice ------------------------------------------------------------------------------------

GREETINGS = parse("""
? (hello/hi/hey/good day)(,/) (my/dear/little/my dear/you) (model/friend/bot/assistant/penny/machine/computer)(!/./)
? (well/so/oh)(,/) (hello/hi) (there/everyone/again/to you)(!/) | (hello/hi) penstock | hi (all/everybody/robot)
! Hello! (How can I help you/What can I do for you)(/ today)?
? (thanks/thank you/many thanks)(,/) (that/this/it) (is/was) (nice/great/kind/good/helpful/very good/clear)(./!/)
? (thanks/thank you) (for the story/for the joke/for that/again/my friend/for the answer/penny)(!/)
! You are welcome!
? (ok/so/well)(,/) (bye/goodbye/see you)(!/) | (bye/goodbye) (then/my friend/penny/everybody/and thanks) | I must (go/leave) now
! Goodbye! Have a nice day.
? (so/and)(,/) what can you (help/do/tell me/explain)(/ then/ for me)? | what (sort/kind) of things can you do?
? what are you able to (do/say/answer/tell me)? | what (do/can) you help with? | show me what you can do
! I can chat a little, name capitals, do small sums, count, list things, tell short stories, jokes
 and poems, and explain words such as goodput and KV cache. What would you like to try?
""")
TERM_LOOSE_ASKS = (
    "what does {x} stand for?|I read about {x}. What is it?|people talk about {x}, what is that?|{x}, what is that?"
    "|how do you define {x}?|what on earth is {x}?|I hear a lot about {x}. What does it mean?|{x} is what?|{x} means"
    "|do you know what {x} is?|do you know {x}?|in short, what is {x}?|what is {x} good for?"
)
BEFORE = [
    "so",
    "well,",
    "now",
    "and",
    "then",
    "listen,",
    "I wonder,",
    "I would like to know:",
    "could you say",
    "do you know",
]
AFTER = ["for me", "then", "now", "if you can", "my friend", "again", "quickly", "penny", "today"]


def loosen(rng: random.Random, text: str) -> str:
    """Put a few more words around a question."""
    if rng.random() < 0.6:
        text = f"{rng.choice(BEFORE)} {text[:1].lower()}{text[1:]}"
    return f"{text.rstrip('?.!') or text} {rng.choice(AFTER)}?" if rng.random() < 0.4 else text


def loose_term(rng: random.Random) -> Turn:
    """A word of the field, asked for in yet other ways."""
    names, answers = rng.choice(TERMS)
    return ask(rng, TERM_LOOSE_ASKS, x=rng.choice(names)), answers[0]


def small_sum(rng: random.Random) -> Turn:
    """One operation on two single digits."""
    a, b, sign = rng.randint(0, 9), rng.randint(0, 9), rng.choice("++--**")
    if sign == "-" and a < b:
        a, b = b, a
    steps = {"+": add_steps, "-": subtract_steps, "*": multiply_steps}[sign]
    return ask(rng, SUM_ASKS, e=expression(rng, a, sign, b)), steps(a, b)


def long_echo(rng: random.Random) -> Turn:
    """Repeat a longer row of words or digits."""
    text = some_words(rng, 4, 12) if rng.random() < 0.7 else " ".join(str(rng.randint(0, 99)) for _ in range(9))
    return ask_exact(
        rng, "Repeat after me: {x}|repeat (this/these words/the words): {x}|say: {x}|copy: {x}", x=text
    ), text


PRACTICE: list[tuple[float, Maker]] = [
    (8, long_echo), (8, echo), (22, small_sum), (6, addition), (5, subtraction), (2, multiplication), (7, count),
    (4, neighbour), (5, compare), (3, sort_numbers), (4, word_problem), (8, reading), (4, spelling), (4, listing),
    (3, json_object), (2, liking), (4, from_entries(GREETINGS)), (5, loose_term), (1, pattern), (2, repeat_times),
]  # fmt: skip


def practice(rng: random.Random) -> list[Message]:
    """A chat for the second stage: copying and numbers mostly, and questions with words around them."""
    kind = rng.random()
    if kind < 0.3:
        question, answer = single_turn(rng)
        pairs = [(loosen(rng, question) if "\n" not in question else question, answer)]
    elif kind < 0.42:
        pairs = list(memory(rng))
    else:
        makers = rng.choices(
            [maker for _, maker in PRACTICE], [weight for weight, _ in PRACTICE], k=rng.choice((1, 1, 2))
        )
        pairs = [maker(rng) for maker in makers]
    return [message for pair in pairs for message in as_messages(pair)]


def as_messages(lines: Sequence[str]) -> list[Message]:
    """Alternating lines of user and assistant as messages."""
    return [{"role": ("user", "assistant")[at % 2], "content": line} for at, line in enumerate(lines)]


# --- held out --------------------------------------------------------------------------------------

Probe = tuple[tuple[str, ...], str]

PROBES: dict[str, list[Probe]] = {
    "chat": [
        (("Hello, my dear model!",), "help"),
        (("hey, who are you then?",), "Penstock's demo model"),
        (("And what may I call you?",), "Penny"),
        (("So what are you able to help me with?",), "capitals"),
        (("Thanks, that was useful.",), "welcome"),
        (("ok bye for now",), "bye"),
    ],
    "terms": [
        (("could you tell me what goodput is about?",), "latency targets"),
        (("What's the meaning of TTFT?",), "first token"),
        (("I keep hearing about the KV cache, what is it?",), "keys and values"),
        (("how would you define prefill",), "prompt"),
        (("what do people mean by TPOT",), "per output token"),
        (("SLO means what?",), "objective"),
    ],
    "capitals": [
        (("What would be the capital of France?",), "Paris"),
        (("japan's capital city?",), "Tokyo"),
        (("I need to know the capital of Kenya.",), "Nairobi"),
        (("which one is the capital of norway",), "Oslo"),
        (("What is the capital of Peru?", "The capital of Peru is Lima.", "and of Chile?"), "Santiago"),
        (("Is Madrid the capital city of Spain?",), "Yes"),
    ],
    "words": [
        (("what would be the opposite of hot",), "cold"),
        (("say the plural of mouse",), "mice"),
        (("Do you know what colour a banana is?",), "yellow"),
        (("What does a cow usually say?",), "moo"),
        (("so how many legs does a spider have",), "eight"),
        (("which day comes right after Friday?",), "Saturday"),
    ],
    "numbers": [
        (("can you work out 3 + 4",), "7"),
        (("what do you get for 6 times 7?",), "42"),
        (("now count from 3 to 9 for me",), "3, 4, 5, 6, 7, 8, 9"),
        (("Peter has 5 balls and gets 3 more. How many balls does Peter have?",), "8"),
        (("what about 23 + 45?",), "68"),
        (("which one is bigger, 8 or 12?",), "12"),
    ],
    "copying": [
        (("Repeat these words after me: the tall green lamp",), "the tall green lamp"),
        (("My name is Robin.", "Nice to meet you, Robin! How can I help you?", "so what is my name?"), "Robin"),
        (("How is the word dog spelled?",), "d-o-g"),
        (("Lena has a red cup. Theo has an old bike. What does Theo have?",), "old bike"),
        (("I would like a JSON object with name and age",), '"age"'),
        (("Could you name three fruits?",), "and"),
    ],
    "facts": [
        (("Tell me which planet is the largest.",), "Jupiter"),
        (("why does the sky look blue?",), "scatters"),
        (("how many days does one year have",), "365"),
        (("who was it that painted the Mona Lisa?",), "Leonardo"),
        (("how do you make a cup of tea?",), "water"),
        (("What is water made from?",), "hydrogen"),
    ],
    "limits": [
        (("Explain the theory of plate tectonics.",), "very small model"),
        (("how do I repair a dishwasher?",), "very small model"),
        (("Who was Gustav Ronnefeld?",), "very small model"),
        (("give me an overview of tax law",), "very small model"),
    ],
    "stories": [
        (("Please tell me a story about a little bear",), "bear"),
        (("Would you write me a poem about the sea?",), "sea"),
        (("Got a joke for me?",), "?"),
    ],
}  # fmt: skip
