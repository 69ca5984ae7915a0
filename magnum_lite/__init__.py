"""magnum-lite: containers as a service for OpenStack, by Heat alone."""

import warnings

from oslo_service import backend

# Use native threads. oslo.messaging imports oslo.service, which would otherwise choose eventlet at
# its first import. futurist imports eventlet wherever it is installed, only to see whether it is in
# use; eventlet then warns that it is deprecated.
warnings.filterwarnings('ignore', message=r'\s*Eventlet is deprecated')
backend.register_backend_default_hook(lambda: backend.BackendType.THREADING)
