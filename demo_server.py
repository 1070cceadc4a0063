"""Serves a page on this machine to try a network on: drop a picture, type sentences, see masks."""
from argparse import Namespace

import distributed
from args import INFERENCE, RecipeParser, get_parser, whole
from lib.accelerate import set_up
from lib.predictor import Predictor
from lib.serving import PageServer
from utils import log


def parser() -> RecipeParser:
    """The flags of the network and the run, and the port."""
    flags = get_parser(*INFERENCE)
    flags.description = __doc__
    flags.add_argument_group("page").add_argument(
        "--port", default=8000, type=whole(0, 65535), metavar="N",
        help="port of the page, on 127.0.0.1 only (default: 8000; 0: any free port)")
    return flags


def run(args: Namespace) -> None:
    """Serves the page until Ctrl-C; `main` reports errors."""
    device = distributed.init_processes(args.device, args.local_rank)
    set_up(device, args)
    predictor = Predictor(args.resume, device=device, amp=args.amp, fast=args.fuse, args=args)
    with PageServer(predictor, args.resume, args.port) as server:
        log(f"open http://127.0.0.1:{server.server_port}/ in a browser of this machine; Ctrl-C ends the server")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            log("ended")


def main() -> None:
    """Parses the command line and serves the page."""
    args = parser().parse_args()
    with distributed.user_errors("demo_server.py"):
        run(args)


if __name__ == "__main__":
    main()
    distributed.leave_at_once()
