"""What an artefact was made from, and whether it is still as it was written."""
