"""magnum-lite: containers as a service for OpenStack, by Heat alone."""

import warnings

from oslo_service import backend

# Native threads. oslo.service, which oslo.messaging imports, would else choose eventlet at its
# first import; futurist imports eventlet wherever it is installed, only to look whether it is in
# use, and eventlet then warns about itself.
warnings.filterwarnings('ignore', message=r'\s*Eventlet is deprecated')
backend.register_backend_default_hook(lambda: backend.BackendType.THREADING)
