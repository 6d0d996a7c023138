"""The one exception that means: what the user gave us is wrong."""


class InputError(ValueError):
  """Bad input. The message is one sentence that says where and what.

  The command line prints it without a traceback and exits with code 2.
  """
