"""openai-python, for embeddings."""

import asyncio
from functools import partial

import numpy as np
import openai

MODEL, SIZE = "minilm", 384
TEXTS = ["hello world", "greetings, planet", "the invoice was paid late"]
# TEXTS[0] as the model's tokenizer has it.
TOKENS = [7592, 2088]


def checks(url):
    options = {"base_url": f"http://{url}/v1", "api_key": "none", "max_retries": 0, "timeout": 60}
    with openai.OpenAI(**options) as client:
        for check in (models, one_text, several_texts, tokens, encodings, errors):
            bound = partial(check, client)
            bound.__name__ = check.__name__
            yield "openai", bound

    def asynchronous():
        asyncio.run(ask_asynchronously(options))

    yield "openai (async)", asynchronous


def embed(client, input, **options):
    answer = client.embeddings.create(model=MODEL, input=input, **options)
    assert answer.object == "list" and answer.model == MODEL, answer
    assert [one.index for one in answer.data] == list(range(len(answer.data))), answer
    assert {one.object for one in answer.data} == {"embedding"}, answer
    vectors = np.array([one.embedding for one in answer.data])
    assert vectors.shape[1] == SIZE and np.isfinite(vectors).all(), vectors.shape
    return vectors, answer.usage


def models(client):
    model = next(model for model in client.models.list() if model.id == MODEL)
    assert model.object == "model" and model.owned_by == "wisp" and model.created > 0, model
    assert client.models.retrieve(MODEL).id == MODEL
    refused(openai.NotFoundError, lambda: client.models.retrieve("nobody"), "nobody")


def one_text(client):
    vectors, usage = embed(client, TEXTS[0])
    assert len(vectors) == 1
    # With the marks that the model puts around a text.
    assert usage.prompt_tokens == usage.total_tokens == len(TOKENS) + 2, usage


def several_texts(client):
    vectors, usage = embed(client, TEXTS, user="somebody", dimensions=SIZE)
    alone = [embed(client, text) for text in TEXTS]
    np.testing.assert_allclose(vectors, np.concatenate([one for one, _ in alone]), atol=1e-4)
    assert usage.prompt_tokens == sum(one.prompt_tokens for _, one in alone), usage
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert near > far + 0.2, f"what is alike has {near:.2f}, what is not {far:.2f}"


def tokens(client):
    text, usage = embed(client, TEXTS[0])
    one, one_usage = embed(client, TOKENS)
    np.testing.assert_allclose(one, text, atol=1e-5)
    assert one_usage == usage, (one_usage, usage)
    two, two_usage = embed(client, [TOKENS, TOKENS[:1]])
    np.testing.assert_allclose(two[:1], text, atol=1e-4)
    assert two_usage.prompt_tokens == usage.prompt_tokens + 3, two_usage


def encodings(client):
    """openai-python asks for base64, and decodes it, unless it is told otherwise."""
    decoded, _ = embed(client, TEXTS)
    floats, _ = embed(client, TEXTS, encoding_format="float")
    np.testing.assert_allclose(decoded, floats, atol=1e-6)
    raw = client.embeddings.create(model=MODEL, input=TEXTS[0], encoding_format="base64")
    assert isinstance(raw.data[0].embedding, str), raw.data[0]


def errors(client):
    def create(input=TEXTS[0], model=MODEL, **options):
        return lambda: client.embeddings.create(model=model, input=input, **options)

    refused(openai.NotFoundError, create(model="nobody"), "nobody")
    # A model that is served and is no embedding.
    refused((openai.NotFoundError, openai.BadRequestError), create(model="add"), "add")
    for input in ("", [], ["a", ""], [[]], ["a"] * 2049, [1 << 40], [-1], [[1], "a"], {"a": 1}):
        refused(openai.BadRequestError, create(input))
    refused(openai.BadRequestError, create(dimensions=7), "dimensions")
    refused(openai.BadRequestError, create(encoding_format="morse"), "morse")


def refused(kind, call, text=""):
    try:
        answer = call()
    except kind as error:
        assert text in error.message and error.body["message"] and error.body["type"], error
        return
    raise AssertionError(f"it was not refused: {text or str(answer)[:200]}")


async def ask_asynchronously(options):
    async with openai.AsyncOpenAI(**options) as client:
        calls = [client.embeddings.create(model=MODEL, input=text) for text in TEXTS * 4]
        answers = await asyncio.gather(*calls)
        first = [answers[at].data[0].embedding for at in range(len(TEXTS))]
        last = [answer.data[0].embedding for answer in answers[-len(TEXTS) :]]
        np.testing.assert_allclose(first, last, atol=1e-5)
        assert [model.id async for model in client.models.list()] == [MODEL]
