"""The config that mmengine writes into a checkpoint as text, read without running it."""

import ast
from collections.abc import Sequence
from typing import Any

NAMES = {'inf': float('inf'), 'nan': float('nan')}


def read_settings(text: str, names: Sequence[str]) -> dict[str, Any]:
    """Settings from the top of a config's text.

    Args:
        text (str): The text, as ``Config.pretty_text`` gives it.
        names (Sequence[str]): Which settings.

    Returns:
        dict[str, Any]: Those that are there and consist of numbers, texts, lists, tuples and dicts alone.
    """
    try:
        body = ast.parse(text).body
    except SyntaxError:
        return {}
    settings = {}
    for statement in body:
        if isinstance(statement, ast.Assign) and isinstance(target := statement.targets[0], ast.Name):
            if target.id in names:
                try:
                    settings[target.id] = _value(statement.value)
                except ValueError:
                    continue
    return settings


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.List):
        return [_value(one) for one in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_value(one) for one in node.elts)
    if isinstance(node, ast.Dict):
        return {_value(key): _value(value) for key, value in zip(node.keys, node.values) if key is not None}
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.Name) and node.id in NAMES:
        return NAMES[node.id]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict':
        # Keys that are no names stand in a dict inside.
        inner = {key: value for one in node.args if isinstance(one, ast.Dict) for key, value in _value(one).items()}
        return inner | {keyword.arg: _value(keyword.value) for keyword in node.keywords if keyword.arg}
    raise ValueError(ast.dump(node))
