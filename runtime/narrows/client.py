Client=Encoding=Hit=SearchResult=ServerInfo=None
