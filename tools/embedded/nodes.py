"""Stand in for the nodes of a Heat stack: signal what a node that has just booted would signal.

`nodes.py STACK_ID`, run by `tools/demo` in the venv of magnum-lite (it needs openstacksdk). Every
OS::Heat::WaitConditionHandle of the stack and of the stacks nested in it is signalled in the way of
a node: a POST to the handle's `endpoint` with the handle's own `token` (TOKEN_SIGNAL), and with no
credentials of the caller. New handles appear as the stack grows, so this goes on until the stack is
no longer IN_PROGRESS, and prints its progress. The exit code is 0 if the stack is then complete,
else 1. The cloud is the entry $OS_CLOUD of clouds.yaml."""

import argparse
import sys
import time

import keystoneauth1.exceptions
import openstack
import requests

HANDLE = 'OS::Heat::WaitConditionHandle'
NESTED_DEPTH = 10
POLL_S = 1
SIGNAL_TIMEOUT_S = 60


class Stack:
    """One stack, read with the caller's token."""

    def __init__(self, stack_id: str):
        self.heat = openstack.connect(app_name='magnum-lite-demo').orchestration
        self.path = f'/stacks/{stack_id}'

    def get(self, path: str) -> dict:
        """Return the JSON at a path of the project's Heat URL. Raises openstack's HttpException."""
        answer = self.heat.get(path)
        openstack.exceptions.raise_from_response(answer)
        return answer.json()

    def status(self) -> str:
        return self.get(self.path)['stack']['stack_status']

    def resources(self) -> list[dict]:
        """Return the resources of the stack and its nested stacks, each with its `path`."""
        found = self.get(f'{self.path}/resources?nested_depth={NESTED_DEPTH}')['resources']
        for resource in found:
            own = next(link['href'] for link in resource['links'] if link['rel'] == 'self')
            resource['path'] = own[own.index('/stacks/') :]
        return found

    def signal(self, resource: dict) -> str | None:
        """Signal one handle as its node would. Return the error, or None if it worked."""
        values = self.get(resource['path'])['resource'].get('attributes') or {}
        if not values.get('endpoint') or not values.get('token'):
            return 'it has no endpoint and token yet'
        body = {'status': 'SUCCESS', 'reason': 'signalled in place of a node', 'data': 'ready'}
        try:
            answer = requests.post(
                values['endpoint'],
                json=body,
                headers={'X-Auth-Token': values['token']},
                timeout=SIGNAL_TIMEOUT_S,
            )
        except requests.RequestException as error:
            return str(error)
        return None if answer.ok else f'HTTP {answer.status_code}: {answer.text}'


def is_done(resource: dict) -> bool:
    """Whether a resource is complete. One that has not begun is INIT_COMPLETE."""
    return resource['resource_status'] in ('CREATE_COMPLETE', 'UPDATE_COMPLETE')


def name_node(handle: dict, resources: list[dict]) -> str:
    """Name the node that a handle belongs to, by the resources that the stacks around the handle
    are."""
    owners = {resource['physical_resource_id']: resource for resource in resources}
    names, resource = [], handle
    # A path is /stacks/NAME/ID/resources/NAME. ID is the physical id of the resource, in the stack
    # above, that this stack is.
    while resource := owners.get(resource['path'].split('/')[3]):
        names.append(resource['resource_name'])
    return '/'.join(reversed(names)) or handle['resource_name']


class Player:
    """Signals the handles of one stack, each once, and prints each line only when it changes."""

    def __init__(self, stack: Stack, *, signal: bool):
        self.stack, self.signal = stack, signal
        self.signalled: set[str] = set()
        self.last_line = ''

    def say(self, text: str) -> None:
        if text != self.last_line:
            print(text, flush=True)
            self.last_line = text

    def play(self) -> str:
        """Signal handles as they appear until the stack has finished; return its status."""
        while True:
            try:
                # Read the status first: the resources that are listed after it are at least as new.
                status = self.stack.status()
                self.signal_new_handles(status)
                if not status.endswith('_IN_PROGRESS'):
                    return status
            except (
                openstack.exceptions.SDKException,
                keystoneauth1.exceptions.ClientException,
            ) as error:
                self.say(f'Heat does not answer: {error}')
            time.sleep(POLL_S)

    def signal_new_handles(self, status: str) -> None:
        """List the resources once, print the progress, and signal each new handle."""
        resources = self.stack.resources()
        done = sum(map(is_done, resources))
        self.say(f'stack {status}: {done} of {len(resources)} resources are there')
        handles = [
            resource
            for resource in resources
            if resource['resource_type'] == HANDLE and is_done(resource)
        ]
        for handle in handles if self.signal else ():
            if handle['path'] not in self.signalled:
                error = self.stack.signal(handle)
                if error:
                    self.say(f'node {name_node(handle, resources)} is not signalled: {error}')
                else:
                    self.signalled.add(handle['path'])
                    self.say(f'node {name_node(handle, resources)} reports SUCCESS')


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('stack', metavar='STACK_ID')
    parser.add_argument('--no-signal', action='store_true', help='only say how far the stack is')
    args = parser.parse_args()
    try:
        status = Player(Stack(args.stack), signal=not args.no_signal).play()
    except KeyboardInterrupt:
        return 130
    print(f'stack {status}', flush=True)
    return 0 if status.endswith('_COMPLETE') else 1


if __name__ == '__main__':
    sys.exit(main())
