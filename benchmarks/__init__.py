"""What is measured of the service, against what."""
