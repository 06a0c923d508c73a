"""An Orthanc that this node works for: what it stores is taken in, what is made of it is given back.

`tharsis_orthanc` is the script that runs inside of Orthanc, under another licence: nothing here imports it.
"""
