"""The flags of gcloud that the launcher may use, and how they were found.

`python tests/launch/gcloud.py` writes them anew, from the gcloud that is here.
"""

import json
import pathlib
import re
import subprocess

TABLE = pathlib.Path(__file__).parent / 'gcloud_flags.json'
COMMANDS = [
  'queued-resources create',
  'queued-resources describe',
  'queued-resources delete',
  'tpu-vm scp',
  'tpu-vm ssh',
]


def flags_of(command: str) -> list[str]:
  """What the help of a command of `gcloud compute tpus` names as flags."""
  words = ['gcloud', 'compute', 'tpus', *command.split(), '--help']
  text = subprocess.run(words, capture_output=True, text=True, check=True)
  plain = re.sub(r'\x1b\[[0-9;]*m', '', text.stdout)
  synopsis = plain.partition('\nDESCRIPTION\n')[0]
  wide = plain.partition('GCLOUD WIDE FLAGS')[2]
  return sorted(set(re.findall(r'--[a-z][-a-z]*', synopsis + wide)))


if __name__ == '__main__':
  table = {command: flags_of(command) for command in COMMANDS}
  TABLE.write_text(json.dumps(table, indent=1) + '\n')
