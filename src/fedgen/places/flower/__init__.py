"""Everything that touches Flower and Ray; both are optional, and imported late."""
