"""The two ways in which a command ends without a traceback."""


class InputError(ValueError):
  """Bad input. The message is one sentence that says where and what.

  The command line prints it and exits with code 2.
  """


class TrainingError(RuntimeError):
  """Training cannot go on. The command line exits with code 1."""
