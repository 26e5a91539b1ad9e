"""Ask a served ensemble with the official client: python examples/client.py URL MODEL

The server is python -m ptsearch +serve=local serve.dir=FOLDER; URL ends in /v1, MODEL is the name
of the folder.
"""

import sys

import openai


def main(url: str, model: str) -> tuple[str | None, list[dict[str, object]]]:
    client = openai.OpenAI(base_url=url, api_key="none")
    reply = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Is the review positive? A dull film."}],
        extra_body={"structured_outputs": {"choice": ["yes", "no"]}},
    )
    assert reply.model_extra is not None
    return reply.choices[0].message.content, reply.model_extra["ptsearch"]["members"]


if __name__ == "__main__":
    label, members = main(sys.argv[1], sys.argv[2])
    print(label)
    for member in members:
        print(f"  {member['member']}: {member['answer']} ({member['outcome']})")
