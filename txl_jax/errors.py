"""The ways in which a command ends early without a traceback."""


class InputError(ValueError):
  """Bad input. The message is one sentence that says where and what.

  The command line prints it and exits with code 2.
  """


class TrainingError(RuntimeError):
  """Training cannot go on. The command line exits with code 1."""


class Interrupted(Exception):  # noqa: N818, it is none
  """A signal stopped the run, and all is saved: the same command goes on.

  The command line exits with code 77, which launchers take as a request to be
  started again.
  """
