"""Tables, figures and the HTML page, made from stored records alone; no model is ever run here."""
