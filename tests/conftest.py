"""What every test relies on."""

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background jobs ignore Ctrl-C, and so would children
    signal.signal(signal.SIGINT, signal.default_int_handler)
