#!/usr/bin/env bash
# A length limit in a JSON schema changes which characters xgrammar's strings may hold.
#
# xgrammar 0.2.8, `compile_json_schema`. One would expect `"maxLength": 300` to count characters and
# leave the rest of the JSON grammar as it is. Seen instead, for {"caption": <string>}:
#
#   value of the string            without maxLength   with maxLength
#   A helipad marked \"H\".        taken               refused   (every backslash escape is)
#   a tab as it is                 refused             taken     (no valid JSON)
#   U+0001 as it is                refused             taken     (no valid JSON)
#
# So a model bound to such a schema can only close the string where it wants to write a quotation
# mark, and the caption is cut off there; and not every reply that the grammar lets through parses.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
pip torch==2.13.0
pip --no-deps xgrammar==0.2.8  # it asks for triton, which only CUDA needs
pip transformers==5.20.2 numpy pydantic apache-tvm-ffi==0.1.15.post2
"$folder/venv/bin/python" - <<'PY'
import json
from importlib.metadata import version

import xgrammar

info = xgrammar.TokenizerInfo([bytes([byte]) for byte in range(256)], stop_token_ids=[0])
compiler = xgrammar.GrammarCompiler(info)


def taken(value: str, **limits: int) -> bool:
    string = {"type": "string", **limits}
    schema = {"type": "object", "properties": {"caption": string}, "required": ["caption"]}
    grammar = compiler.compile_json_schema(json.dumps(schema), any_whitespace=False)
    matcher = xgrammar.GrammarMatcher(grammar)
    return matcher.accept_string(f'{{"caption": "{value}"}}') and matcher.is_completed()


seen = {
    name: (taken(value), taken(value, maxLength=300))
    for name, value in {
        "plain": "A helipad.",
        "escape": r"A helipad marked \"H\".",
        "tab": "A\thelipad.",
        "U+0001": "A\x01helipad.",
    }.items()
}
print("xgrammar", version("xgrammar"), "taken without, and with maxLength:", seen)
assert seen == {
    "plain": (True, True),
    "escape": (True, False),
    "tab": (False, True),
    "U+0001": (False, True),
}, "this has changed"
PY
