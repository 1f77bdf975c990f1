"""What is done to rows in hand, whichever way they came: calling functions, cutting, joining, naming them."""
