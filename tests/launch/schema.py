"""Small schemas of Kubernetes, and how they were made from its own.

`python tests/launch/schema.py CRD` takes the definition of JobSet (which has in
it those of jobs and pods) and keeps what the manifests of the tests touch: of
each such object the names of all its fields, so that an unknown one is found.
"""

import json
import pathlib
import sys
from typing import Any

SCHEMA = pathlib.Path(__file__).parent / 'jobset_schema.json'
KEPT = ('type', 'enum', 'required', 'pattern', 'minimum', 'maximum')
TYPES = {
  'object': dict,
  'array': list,
  'string': str,
  'integer': int,
  'boolean': bool,
}


def problems(value: Any, schema: dict, path: str = '') -> list[str]:
  """What in a value does not follow the schema."""
  if schema.get('x-kubernetes-int-or-string'):
    return [] if type(value) in (int, str) else [f'{path}: {value!r}']
  if type(value) is not TYPES.get(schema.get('type'), type(value)):
    return [f'{path}: expected a {schema["type"]}, found {value!r}']
  found = []
  if value not in schema.get('enum', [value]):
    found += [f'{path}: {value!r} is none of {schema["enum"]}']
  if isinstance(value, dict):
    missing = set(schema.get('required', ())) - value.keys()
    found += [f'{path}.{name} is missing' for name in missing]
    for name, each in value.items():
      found += problems(each, _below(schema, name), f'{path}.{name}')
  if isinstance(value, list):
    for i, each in enumerate(value):
      found += problems(each, schema.get('items', {}), f'{path}[{i}]')
  return found


def _below(schema: dict, name: str) -> dict:
  """Of a field; nothing fits one that is not there."""
  if 'properties' in schema:
    return schema['properties'].get(name, {'type': 'no', 'enum': []})
  return schema.get('additionalProperties', {})


TYPES['no'] = type(problems)


def pruned(schema: dict, values: list) -> dict:
  """The part of a schema that some values need."""
  kept = {name: schema[name] for name in KEPT if name in schema}
  if schema.get('x-kubernetes-int-or-string'):
    kept['x-kubernetes-int-or-string'] = True
  if 'properties' in schema:
    objects = [value for value in values if isinstance(value, dict)]
    kept['properties'] = {
      name: pruned(each, found) if found else {}
      for name, each in schema['properties'].items()
      for found in [[value[name] for value in objects if name in value]]
    }
  elif 'additionalProperties' in schema:
    fields = [e for v in values if isinstance(v, dict) for e in v.values()]
    kept['additionalProperties'] = pruned(
      schema['additionalProperties'], fields
    )
  if 'items' in schema:
    items = [each for value in values for each in value]
    kept['items'] = pruned(schema['items'], items)
  return kept


def _write(definition: str) -> None:
  import test_kubernetes
  import yaml

  text = pathlib.Path(definition).read_text()
  (version,) = yaml.safe_load(text)['spec']['versions']
  whole = version['schema']['openAPIV3Schema']
  # Of the metadata it says only that it is an object.
  names = {name: {'type': 'string'} for name in ('name', 'namespace')}
  maps = {'type': 'object', 'additionalProperties': {'type': 'string'}}
  names |= {'annotations': maps, 'labels': maps}
  whole['properties']['metadata']['properties'] = names
  values = [test_kubernetes.manifest(*row) for row in test_kubernetes.PLACES]
  small = pruned(whole, values)
  SCHEMA.write_text(json.dumps(small, separators=(',', ':')) + '\n')


if __name__ == '__main__':
  _write(sys.argv[1])
