import pytest

from ui.leaks import find_leak

NAMES = ["base", "aligned", "smollm2-135m-instruct", "runs/demo/ppo/model", "Qwen/Qwen3-4B"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("As SmolLM, I cannot say.", "As SmolLM,"),
        ("I am SmolLM2-135M-Instruct.", "SmolLM2-135M-Instruct"),
        ("smollm2 135m thinks so", "smollm2 135m"),
        ("This is Qwen3-4B speaking", "Qwen3-4B"),
        ("I'm ChatGPT and can help", "I'm ChatGPT"),
        ("Hello! I’m an AI assistant called Claude.", "I'm an AI assistant called Claude"),
        ("My name is Llama 3.1", "My name is Llama 3.1"),
        ("I am GPT-4, of course", "I am GPT-4"),
        ("I was trained by OpenAI to help", "I was trained by OpenAI"),
        ("I am a model trained by Google.", "I am a model trained by Google"),
        ("This model was created by Hugging Face", "model was created by Hugging Face"),
        ("As Claude from Anthropic, I would", "As Claude from Anthropic,"),
        ("I am\nChatGPT", "I am ChatGPT"),
        ("I am Smol\u200bLM", "I am SmolLM"),
        ("I am ＣｈａｔＧＰＴ", "I am ChatGPT"),
    ],
)
def test_an_answer_that_names_its_model_is_found(text, words):
    assert find_leak(text, NAMES) == words


@pytest.mark.parametrize(
    "text",
    [
        "The base of the lamp is aligned with the wall; the model is new.",
        "ChatGPT is a product of OpenAI.",
        "Llamas live in Peru; a gemini is a twin.",
        "Claude Monet painted water lilies.",
        "I am happy to help with your Google search.",
        "The bridge was built by Google engineers.",
        "I am an instructor at a school.",
        "The demo runs well.",
        "I am a large language model, aligned with your values.",
        "",
    ],
)
def test_an_answer_about_other_things_is_not(text):
    assert find_leak(text, NAMES) is None


def test_without_names_only_self_descriptions_are_found():
    assert find_leak("smollm2-135m-instruct is small", []) is None
    assert find_leak("I am Qwen", []) == "I am Qwen"


def test_a_long_answer_takes_no_time():
    text = "I am the model that was made " * 40_000
    assert find_leak(text, NAMES) is None
