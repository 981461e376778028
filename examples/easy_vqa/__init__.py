"""CAREVL on somebody else's data: the pictures and questions of the package easy-vqa."""
