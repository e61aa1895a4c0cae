"""Traces for people: lines like strace's, and pictures for Perfetto."""
