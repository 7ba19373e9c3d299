"""Length statistics of published workloads, as tables and parameters. Which file or paper each is from stands with it.

    spec                 source                                              what it is
    azure-conv-2023      Azure/AzurePublicDataset, CC-BY 4.0                 fitted to the trace (`synth`)
    llumnix:A-B          Llumnix, OSDI 2024, artifact                        its generator, draw for draw
    loongserve:sharegpt  LoongServe, SOSP 2024, published run, Apache-2.0    quantiles of 1,000 requests, LWM tokens
    loongserve:zipf-A    LoongServe, SOSP 2024, figure 12                    its law for prompts; answers: see below
    distserve:sharegpt   DistServe, OSDI 2024, preprocessing                 fitted to quantiles, OPT tokens
    distserve:humaneval  DistServe, OSDI 2024, table of its data sets        its means; the form is ours
    distserve:longbench  the same, and its preprocessing                     its means and cuts; the form is ours
    llumnix:sharegpt     Llumnix, OSDI 2024, table of its data sets          fitted to its mean and four quantiles
    llumnix:burstgpt     the same                                            fitted to its mean and four quantiles

LoongServe's Zipf data sets take, for each length drawn, a request of about that length from three data sets. Prompt
lengths are drawn here from the same law and not moved to the nearest request; the answers of L-Eval and LV-Eval have
no published statistics, so every answer is one of its ShareGPT.
"""

from penstock.workload.quantiles import Joint

_SHAREGPT_LEVELS = (0, 0.05, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95, 0.99, 1)


def _independent(prompts: tuple[float, ...], outputs: tuple[float, ...], levels: tuple[float, ...]) -> Joint:
    return Joint(prompts, (outputs,) * (len(levels) - 1), bands=levels, levels=levels)


#: ShareGPT as LoongServe prepares it: the first turns of a chat, and the next one as the answer. Quantiles of the
#: 1,000 requests of its published run; prompt and answer have a correlation of 0.08 and are drawn apart.
LOONGSERVE_SHAREGPT = _independent(
    (6, 29, 143, 335, 398, 459, 620, 822, 978, 1202, 1346, 1502, 1826, 2021, 2202, 2238),
    (4, 7, 11, 18, 22, 28, 51, 137, 239, 334, 384, 440, 602, 765, 974, 993),
    _SHAREGPT_LEVELS,
)

_DISTSERVE_LEVELS = (0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1)
#: ShareGPT as DistServe prepares it: as above, in the OPT tokenizer, fewer than 2048 tokens in all. The tables are
#: such that the pairs left have the quantiles measured on 1,600 of its requests: prompts P50 680, P90 1543, P99 1922,
#: mean 758.7; answers P50 76, P90 507, P99 968, mean 186.3 (drawn: 190). Between these, the form is that of
#: LoongServe's table in shorter tokens.
DISTSERVE_SHAREGPT = Joint(
    (4, 23, 113, 366, 715, 1188, 1649, 1768, 1976, 1998),
    ((4, 7, 9, 18, 83, 326, 536, 763, 991, 991),) * (len(_DISTSERVE_LEVELS) - 1),
    bands=_DISTSERVE_LEVELS,
    levels=_DISTSERVE_LEVELS,
    total_max=2047,
)

_FORM = (0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1)
#: HumanEval: functions to be written, with their texts. Published means: 171.3 and 98.2 tokens.
DISTSERVE_HUMANEVAL = _independent((48, 82, 112, 153, 206, 279, 420, 520), (12, 28, 45, 76, 125, 190, 330, 420), _FORM)
#: LongBench: texts to be summarized or asked about. Published means: 1738.3 and 90.7 tokens. Its preprocessing cuts
#: long texts so that 1,900 to 2,048 tokens are left, and `DISTSERVE_LONGBENCH_MAX` with the answer.
DISTSERVE_LONGBENCH = _independent(
    (250, 1250, 1850, 1930, 1975, 2010, 2034, 2038), (1, 3, 9, 40, 120, 240, 480, 640), _FORM
)
DISTSERVE_LONGBENCH_MAX = 2040

_LLUMNIX_LEVELS = (0, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.97, 0.99, 1)
#: ShareGPT (GPT-4), first two turns. Published: prompts of mean 306, P50 74, P80 348, P95 1484, P99 3388; answers 500,
#: 487, 781, 988, 1234.
LLUMNIX_SHAREGPT = _independent(
    (4, 18, 40, 74, 160, 348, 800, 1484, 1950, 3388, 4600),
    (4, 200, 350, 487, 625, 781, 905, 988, 1060, 1234, 1800),
    _LLUMNIX_LEVELS,
)
#: BurstGPT, conversations with GPT-4. Published: prompts of mean 830, P50 582, P80 1427, P95 2345, P99 3549; answers
#: 271, 243, 434, 669, 964.
LLUMNIX_BURSTGPT = _independent(
    (20, 140, 330, 582, 870, 1427, 1850, 2345, 2650, 3500, 5500),
    (4, 75, 140, 243, 320, 434, 540, 669, 740, 950, 1500),
    _LLUMNIX_LEVELS,
)

#: Llumnix's generated lengths by name: mean in tokens, and the exponent of the Zipf law.
LLUMNIX = {"S": (128, 2.0), "M": (256, 1.5), "L": (512, 1.15)}
#: No generated length is above this many tokens.
LLUMNIX_CAP = 6144
#: What its artifact seeds NumPy with.
LLUMNIX_SEED = 0xCADE

#: Bounds of LoongServe's Zipf law, in tokens.
LOONGSERVE_ZIPF = (10, 199_999)
LOONGSERVE_EXPONENTS = ("1.0", "1.2", "1.4")
