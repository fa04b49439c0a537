"""Run before a command: no network at all, and a cache of the hub's client that is a folder of the test."""

OFFLINE = """
import socket
def refuse(*_, **__):
    raise OSError("Name or service not known")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
from huggingface_hub import constants
constants.HF_HUB_CACHE = {cache!r}
"""
