"""What a run tells: on the console, and in the files and services that draw its curves.

Only `build.build_reporters` decides who listens; each other file is one listener, and imports its library late.
"""
