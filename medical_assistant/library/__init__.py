"""Pages with sources, and the search that finds the section a question asks for."""
